"""Near-duplicates are found in an index as by comparing all pairs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pretraining.curation.fingerprint import Fingerprint
from pretraining.curation.fingerprint_index import FingerprintIndex
from tests.pretraining.curation.real_ct import EXPORTS, exported, fingerprints, near_duplicate


@pytest.mark.parametrize("others", [0, 200])
@pytest.mark.parametrize("spacing_mm", [None, (1.0, 1.0, 1.0)])
def test_index_finds_what_comparing_all_pairs_finds(spacing_mm: tuple[float, float, float] | None, others: int) -> None:
    """With 200 random volumes the tree is used, without them every volume is compared."""
    index = FingerprintIndex()
    rng = np.random.default_rng(0)
    for name, one in fingerprints().items():
        index.add(name, one)
    for i in range(others):
        slices = rng.normal(0, 13, (20, 99)).round().astype(np.int8)
        index.add(f"other{i}", Fingerprint("CT", 1, (5.0, 1.0, 1.0), np.full((20, 2), 150, np.float32), slices))
    assert len(index) == len(fingerprints()) + others
    for export in EXPORTS:
        for name in ("chest_lidc0314_aniso8mm", "thigh_sts029", "abdomen_3mm_int32"):
            query = exported(export, name)
            query = dataclasses.replace(query, spacing_mm=spacing_mm or query.spacing_mm)
            expected = {key for key, one in fingerprints().items() if near_duplicate(query, one)}
            found = index.query(query)
            assert name in expected
            assert {key for key, _ in found} == expected
            values = [own.similarity for _, own in found]
            assert values == sorted(values, reverse=True)
