"""Slices are sorted and their distances judged; the series of ``awkward.py`` show every refusal."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from nnunetv2_meddino.imaging.stack import SeriesError, stack_slices


def test_stack_reports_the_angle_of_the_tilt_and_the_distance_of_the_table() -> None:
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(0.3), -np.sin(0.3)])
    positions = np.array([[0, 0, z] for z in (8.0, 0, 4, 12)])
    stack = stack_slices(positions, row, column)
    assert stack.order == [1, 2, 0, 3]
    assert stack.tilt_deg == pytest.approx(np.degrees(0.3))
    assert np.linalg.norm(stack.step_mm) == pytest.approx(4)


def test_refusals_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(SeriesError("missing_slices", "one after slice 3")))
    assert (error.reason, str(error)) == ("missing_slices", "one after slice 3")
