"""Crop sizes drawn for every step, against the reference's own sequence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config.recipes import FIVE_RESOLUTIONS
from pretraining.views import ViewConfig
from pretraining.views.resolutions import Resolution, resolution_sequence
from tests.conftest import shared_path


def test_sequence_equals_golden():
    golden = json.loads(shared_path("golden/schedules/multires_sequence.json").read_text())
    resolutions = [Resolution(512, 112, 768, share) for share in golden["ratios"]]
    expected = golden["indices"]
    assert resolution_sequence(resolutions, len(expected), golden["seed"]).tolist() == expected


def test_longer_run_begins_with_the_same_sequence():
    short, long = (resolution_sequence(FIVE_RESOLUTIONS, steps, 65537) for steps in (100, 10_000))
    assert short.tolist() == long[:100].tolist()
    shares = np.bincount(long, minlength=5) / len(long)
    assert shares == pytest.approx([r.share for r in FIVE_RESOLUTIONS], abs=0.015)


@pytest.mark.parametrize("shares", [(0.5, 0.4), (1.5, -0.5)])
def test_shares_must_be_shares(shares):
    with pytest.raises(ConfigurationError, match="add up to 1"):
        resolution_sequence([Resolution(512, 112, None, share) for share in shares], 10, 0)


def test_resolution_changes_sizes_alone():
    config = ViewConfig(num_local=3, jitter_probability=0.1)
    changed = Resolution(512, 168, 768, 1.0).applied_to(config)
    assert (changed.global_size, changed.local_size, changed.gram_size) == (512, 168, 768)
    assert (changed.num_local, changed.jitter_probability) == (3, 0.1)
