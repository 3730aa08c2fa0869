"""Print what became of every documented command, and the counts: ``python -m tests.documentation``."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.documentation.pages import all_pages
from tests.documentation.trial import Trial

with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
    trial = Trial(Path(folder), monkeypatch)
    outcomes = [outcome for page in all_pages() for outcome in trial.page(page)]
for outcome in outcomes:
    print(f"{'FAULT' if outcome.fault else outcome.how:14}{outcome}")
counts = Counter("FAULT" if outcome.fault else outcome.how for outcome in outcomes)
print(f"{len(outcomes)} commands and samples: {', '.join(f'{count} {how}' for how, count in sorted(counts.items()))}")
sys.exit("FAULT" in counts)
