from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from nnunetv2_meddino.evaluation.surface import DirectedDistances
from nnunetv2_meddino.evaluation.surface.elements import element_sizes
from nnunetv2_meddino.evaluation.surface.engine import measure_bytes

SPACING = (2.5, 0.9, 0.7)


def boundary_voxels(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def corner_codes(mask: np.ndarray) -> np.ndarray:
    """The codes corner by corner, as the definition says."""
    padded = np.pad(mask, 1)
    codes = np.zeros([n + 1 for n in mask.shape], dtype=int)
    for corner in np.ndindex(codes.shape):
        for j in range(8):
            voxel = tuple(np.add(corner, (j >> 2 & 1, j >> 1 & 1, j & 1)))
            codes[corner] |= int(padded[voxel]) << j
    return codes


def assert_distances(measured: DirectedDistances, distances: np.ndarray, sizes: np.ndarray) -> None:
    distinct, where = np.unique(distances, return_inverse=True)
    assert measured.distances_mm.tolist() == distinct.tolist()
    assert measured.sizes == pytest.approx(np.bincount(where, sizes), rel=1e-12)


def assert_equals_distance_transform(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> None:
    """Compare both definitions with exact distance transforms of the whole volume."""
    surfaces = measure_bytes(a.astype(np.uint8), b.astype(np.uint8), spacing, [(1,)])[1][0]
    shells = [boundary_voxels(mask) for mask in (a, b)]
    codes = [corner_codes(mask) if mask.size < 2e4 else None for mask in (a, b)]
    directions = ("reference_to_prediction", "prediction_to_reference")
    for i, direction in enumerate(directions):
        field = ndimage.distance_transform_edt(~shells[1 - i], sampling=spacing)[shells[i]]
        assert_distances(getattr(surfaces.voxel, direction), field, np.ones(len(field)))
        if codes[0] is not None:
            surfels = [(c != 0) & (c != 255) for c in codes]
            field = ndimage.distance_transform_edt(~surfels[1 - i], sampling=spacing)[surfels[i]]
            assert_distances(getattr(surfaces.surfel, direction), field, element_sizes(spacing)[codes[i][surfels[i]]])


def random_masks(seed: int, shape: tuple[int, int, int], density: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(shape) < density, rng.random(shape) < density


@pytest.mark.parametrize("density", [0.002, 0.05, 0.5, 0.98])
def test_both_definitions_equal_a_distance_transform_on_random_voxels(density: float) -> None:
    a, b = random_masks(0, (9, 17, 71), density)
    a[4, 5, 6] = b[7, 9, 60] = True
    assert_equals_distance_transform(a, b, SPACING)


@pytest.mark.parametrize("width", [1, 62, 63, 64, 65, 127, 128, 129])
def test_rows_of_any_length_are_read_to_their_end(width: int) -> None:
    a, b = random_masks(width, (4, 5, width), 0.6)
    assert_equals_distance_transform(a, b, SPACING)


@pytest.mark.parametrize("steps", [1, 30, 31, 32, 33, 63, 64, 65, 140])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_voxels_are_found_at_any_distance(axis: int, steps: int) -> None:
    shape = [3, 3, 3]
    shape[axis] = 150
    a, b = np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
    place = [1, 1, 1]
    a[tuple(place)] = 1
    place[axis] += steps
    b[tuple(place)] = 1
    surfaces = measure_bytes(a, b, SPACING, [(1,)])[1][0]
    for direction in (surfaces.voxel.reference_to_prediction, surfaces.voxel.prediction_to_reference):
        assert direction.distances_mm.tolist() == [math.sqrt((steps * SPACING[axis]) ** 2)]


@pytest.mark.parametrize(
    ("layers", "spacing", "inside", "nearest"),
    [
        (40, (1.0, 1.0, 1.0), (0, 0, 18), (12, 12, 0)),  # a row beyond the table
        (40, (1.0, 1.0, 0.3), (0, 12, 0), (0, 0, 33)),  # a column beyond the window
        (40, (9.0, 1.0, 1.0), (3, 0, 0), (0, 26, 0)),
        (3, (1.0, 1.0, 1.0), (0, 0, 30), (0, 26, 0)),  # the table is short, as there are few layers
    ],
)
def test_the_nearest_is_not_missed_where_a_farther_one_is_in_view(
    layers: int, spacing: tuple[float, ...], inside: tuple[int, ...], nearest: tuple[int, ...]
) -> None:
    a, b = np.zeros((2, layers, 40, 90), dtype=np.uint8)
    start = (1, 5, 5)
    a[start] = 1
    for steps in (inside, nearest):
        b[tuple(np.add(start, steps))] = 1
    pair = measure_bytes(a, b, spacing, [(1,)])[1][0].voxel
    distances = [np.linalg.norm(np.multiply(steps, spacing)) for steps in (inside, nearest)]
    assert distances[1] < distances[0]
    assert pair.reference_to_prediction.distances_mm == pytest.approx(distances[1:])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.3, 1.0, 2.0)])
def test_a_prediction_shifted_by_tens_of_voxels_is_still_exact(spacing: tuple[float, ...]) -> None:
    grid = np.indices((60, 110, 120))
    a, b = (
        ((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2 / np.reshape((90, 200, 200), (3, 1, 1, 1))).sum(0) < 1
        for centre in ((15, 25, 30), (45, 80, 90))
    )
    assert_equals_distance_transform(a, b, spacing)


def test_salt_and_pepper_labels_are_still_exact() -> None:
    rng = np.random.default_rng(5)
    volumes = [np.where(rng.random((30, 64, 70)) < 0.004, rng.integers(1, 4, (30, 64, 70)), 0) for _ in range(2)]
    found = measure_bytes(*(v.astype(np.uint8) for v in volumes), SPACING, [(1,), (2,), (3,)])[1]
    for label, surfaces in enumerate(found, start=1):
        points = [np.argwhere(v == label) * SPACING for v in volumes]
        want = cdist(*points)
        for direction, axis in (
            (surfaces.voxel.reference_to_prediction, 1),
            (surfaces.voxel.prediction_to_reference, 0),
        ):
            repeated = np.repeat(direction.distances_mm, direction.sizes.astype(int))
            assert repeated == pytest.approx(np.sort(want.min(axis=axis)), abs=1e-12)


def test_ignored_voxels_only_remove_elements_to_measure_from() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.integers(0, 3, (8, 12, 70)).astype(np.uint8), rng.integers(0, 3, (8, 12, 70)).astype(np.uint8)
    a[:, :6, 20:50] = 9
    b[:, :6, 20:50][rng.random((8, 6, 30)) < 0.3] = 1
    ignored = a == 9
    surfaces = measure_bytes(a, b, SPACING, [(1,)], ignore_label=9)[1][0]
    masks = (a == 1), (b == 1) & ~ignored
    shells, codes = [boundary_voxels(m) for m in masks], [corner_codes(m) for m in masks]
    surfels = [(c != 0) & (c != 255) for c in codes]
    beside = ndimage.binary_dilation(ignored), corner_codes(ignored) != 0
    for i, direction in enumerate(("reference_to_prediction", "prediction_to_reference")):
        source = shells[i] & ~beside[0]
        field = ndimage.distance_transform_edt(~shells[1 - i], sampling=SPACING)[source]
        assert_distances(getattr(surfaces.voxel, direction), field, np.ones(len(field)))
        source = surfels[i] & ~beside[1]
        field = ndimage.distance_transform_edt(~surfels[1 - i], sampling=SPACING)[source]
        assert_distances(getattr(surfaces.surfel, direction), field, element_sizes(SPACING)[codes[i][source]])


def test_a_flat_face_has_its_area() -> None:
    sz, sy, sx = SPACING
    sizes = element_sizes(SPACING)
    high = {0: 0b11110000, 1: 0b11001100, 2: 0b10101010}  # bit 4a + 2b + c: the half of larger z, y, x
    for axis, area in enumerate((sy * sx, sz * sx, sz * sy)):
        assert sizes[high[axis]] == pytest.approx(area, rel=1e-15)


def test_one_voxel_in_a_corner_cuts_a_triangle_through_the_middles_of_three_edges() -> None:
    sz, sy, sx = (s / 2 for s in SPACING)
    area = np.linalg.norm(np.cross([-sz, sy, 0], [-sz, 0, sx])) / 2
    assert element_sizes(SPACING)[[1 << j for j in range(8)]] == pytest.approx(np.full(8, area), rel=1e-15)


def test_a_code_and_its_complement_have_the_same_size() -> None:
    for planar in (False, True):
        sizes = element_sizes(SPACING, planar=planar)
        assert sizes == pytest.approx(sizes[::-1])
        assert sizes[0] == sizes[255] == 0


def test_contour_lengths_of_a_single_slice() -> None:
    mask = np.zeros((1, 9, 11), dtype=np.uint8)
    mask[0, 2:6, 3:9] = 1
    contour = measure_bytes(mask, mask, (3, 0.8, 0.5), [(1,)], planar=True)[1][0].surfel.reference_to_prediction.size
    # a rectangle of 4 x 6 voxels whose four corners are cut at half a voxel
    assert contour == pytest.approx(2 * (3 * 0.8 + 5 * 0.5) + 4 * math.hypot(0.4, 0.25), rel=1e-14)
