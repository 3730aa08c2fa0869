"""Augmentation by torch against that of the workers, which is compared with nnU-Net's elsewhere."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from nnunetv2_meddino.dataloading import augmentation as drawn
from nnunetv2_meddino.dataloading.augmentation import (
    Augmentation,
    AugmentationSettings,
    augment,
    draw_augmentation,
    to_regions,
)
from nnunetv2_meddino.dataloading.augmentation import change_intensities as change_in_worker
from nnunetv2_meddino.dataloading.cases import PreprocessedCases
from nnunetv2_meddino.dataloading.device_augmentation import (
    BoxBatches,
    Boxes,
    DeviceAugmentation,
    change_intensities,
    pack,
)
from nnunetv2_meddino.dataloading.draws import Draws, Stream
from nnunetv2_meddino.dataloading.loader import BatchLoader, Box, SampleSettings, SliceBatches
from nnunetv2_meddino.dataloading.warp import OUTSIDE, source_box
from nnunetv2_meddino.errors import DataError

from .datasets import CHANNELS, SHAPE, write_dataset
from .pictures import slice_of
from .test_augmentation import IMAGE, NOTHING

SIZE = (96, 80)
CPU = torch.device("cpu")
SLICES = [(150, 170), (SIZE[0], SIZE[1]), (60, 50), (90, 1), (1, 1)]


def box_of(shape: tuple[int, int], augmentation: Augmentation, channels: int, seed: int) -> Box:
    """Cut from a rough slice what the warp of a patch in its middle looks at."""
    image, labels = slice_of(shape, channels, seed)
    corner = ((shape[0] - SIZE[0]) // 2, (shape[1] - SIZE[1]) // 2)
    matrix = augmentation.matrix(corner, SIZE)
    (top, bottom), (left, right) = (
        (max(0, first), min(length, after))
        for (first, after), length in zip(source_box(matrix, SIZE), shape, strict=True)
    )
    cut = image[:, top:bottom, left:right], labels[top:bottom, left:right]
    return Box(f"case_{seed}", *cut, matrix - [[0, 0, top], [0, 0, left]], augmentation)


def boxes(channels: int, count: int, **changes: object) -> list[Box]:
    """Draw samples of all sizes of slices."""
    rng = np.random.default_rng(channels)
    settings = AugmentationSettings(channels, (-np.pi, np.pi))
    augmentations = [replace(draw_augmentation(rng, settings), **changes) for _ in range(count)]
    return [box_of(SLICES[i % len(SLICES)], a, channels, i) for i, a in enumerate(augmentations)]


def on_device(
    given: Sequence[Box], masked: tuple[bool, ...] = (), regions: tuple | None = None, device: torch.device = CPU
) -> dict:
    return DeviceAugmentation(SIZE, SampleSettings(None, masked, regions), device)(pack(given))


def in_worker(box: Box, masked: tuple[bool, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    return augment(box.image, box.labels, box.augmentation, box.matrix, SIZE, masked)


def weight_of(box: Box, label: int, row: int, column: int) -> float:
    """Return the bilinear weight of the neighbours that have a label, where ``OUTSIDE`` and 0 are one."""
    y, x = box.matrix @ (row, column, 1)
    weight = 0.0
    for i, j in itertools.product((int(np.floor(y)), int(np.floor(y)) + 1), (int(np.floor(x)), int(np.floor(x)) + 1)):
        inside = 0 <= i < box.labels.shape[0] and 0 <= j < box.labels.shape[1]
        if max(box.labels[i, j] if inside else OUTSIDE, 0) == label:
            weight += (1 - abs(y - i)) * (1 - abs(x - j))
    return weight


@pytest.mark.parametrize(
    ("channels", "masked"), [(1, ()), (1, (True,)), (2, (False, True)), (2, (True, True)), (3, ())]
)
def test_drawn_augmentations_are_those_of_the_worker(channels: int, masked: tuple[bool, ...]) -> None:
    given = boxes(channels, 60, noise_std=0.0)
    batch = on_device(given, masked)
    assert batch["data"].shape == (60, channels, *SIZE)
    assert (batch["target"].shape, batch["target"].dtype) == ((60, 1, *SIZE), torch.int16)
    assert batch["keys"] == [box.case for box in given]
    wrong = 0
    for box, image, (labels,) in zip(given, batch["data"].numpy(), batch["target"].numpy(), strict=True):
        expected, expected_labels = in_worker(box, masked)
        differs = labels != expected_labels
        wrong += differs.sum()
        for row, column in np.argwhere(differs):
            ours, its = (weight_of(box, label[row, column], row, column) for label in (labels, expected_labels))
            assert abs(ours - its) < 1e-5, "no tie"
        for channel, expected_channel in zip(image, expected, strict=True):  # where labels tie, so may the mask
            assert np.abs(channel - expected_channel)[~differs].max() <= 1e-4 * np.ptp(expected_channel)
    assert wrong <= 1e-3 * batch["target"].numel()


@pytest.mark.parametrize("mirrored", itertools.product((False, True), repeat=2))
def test_samples_that_are_only_shifted_or_mirrored_are_copied_to_the_bit(mirrored: tuple[bool, bool]) -> None:
    given = [box_of(shape, replace(NOTHING, mirrored=mirrored), 2, seed) for seed, shape in enumerate(SLICES)]
    batch = on_device(given)
    for box, image, target in zip(given, batch["data"].numpy(), batch["target"].numpy(), strict=True):
        expected, expected_labels = in_worker(box)
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(target[0], expected_labels)


@pytest.mark.parametrize("shift", [(0.5, 0.5), (0.5, 0.0), (0.0, 0.5), (0.25, 0.5)])
def test_of_labels_of_the_same_weight_it_takes_the_one_that_the_worker_takes(shift: tuple[float, float]) -> None:
    given = [box_of(shape, NOTHING, 1, seed) for seed, shape in enumerate(SLICES)]
    given = [replace(box, matrix=box.matrix + [[0, 0, shift[0]], [0, 0, shift[1]]]) for box in given]
    for box, target in zip(given, on_device(given)["target"].numpy(), strict=True):
        np.testing.assert_array_equal(target[0], in_worker(box)[1])


def test_a_sample_without_augmentation_is_its_box() -> None:
    box = box_of(SLICES[0], NOTHING, 2, 0)
    (image,) = on_device([replace(box, augmentation=None)])["data"].numpy()
    np.testing.assert_array_equal(image, box.image)


def test_regions_are_those_of_the_worker() -> None:
    regions = ((1, 2, 3), (2, 3), 4)
    given = boxes(1, 20)
    labels, made = on_device(given)["target"].numpy(), on_device(given, regions=regions)["target"]
    assert made.dtype == torch.bool
    np.testing.assert_array_equal(made, np.stack([to_regions(target[0], regions) for target in labels]))


@pytest.mark.parametrize(
    "change",
    [
        {},
        *({"blur_sigma_px": ((0.0, 0.0), sigma)} for sigma in ((0.5, 1.0), (0.75, 0.91), (1.0, 0.58))),
        *({name: (1.0, factor)} for name in ("brightness", "contrast") for factor in (0.75, 1.25)),
        *({"low_resolution": (1.0, share)} for share in (0.5, 0.613, 0.75, 0.99)),
        *({name: (1.0, gamma)} for name in ("gamma", "gamma_of_inverted") for gamma in (0.7, 1.5)),
    ],
    ids=str,
)
def test_each_change_of_intensities_alone_is_that_of_the_worker(change: dict) -> None:
    augmentation = replace(NOTHING, **change)
    image, expected = torch.from_numpy(IMAGE.copy()), IMAGE.copy()
    change_intensities(image, augmentation)
    change_in_worker(expected, augmentation)
    assert np.abs(image.numpy() - expected).max() < 1e-5 * np.ptp(expected)
    np.testing.assert_array_equal(image[0], IMAGE[0])
    assert not change or np.abs(expected[1] - IMAGE[1]).max() > 1e-2 * np.ptp(expected), "nothing was changed"


@pytest.mark.parametrize("name", ["contrast", "gamma", "gamma_of_inverted"])
def test_a_channel_of_one_value_stays_as_it_is(name: str) -> None:
    flat = torch.full((2, 40, 40), 2.5)
    change_intensities(flat, replace(NOTHING, **{name: (0.8, 1.2)}))
    torch.testing.assert_close(flat, torch.full((2, 40, 40), 2.5))


def noise(seed: int, device: torch.device = CPU) -> torch.Tensor:
    flat = torch.zeros(2, 400, 400, device=device)
    change_intensities(flat, replace(NOTHING, noise_std=0.05, noise_seed=seed))
    return flat.cpu()


def assert_is_noise(device: torch.device) -> None:
    first, other = noise(7, device), noise(8, device)
    assert torch.equal(first, noise(7, device))
    for channel in first:
        assert abs(float(channel.std()) - 0.05) < 0.001  # the error of 160,000 numbers is 0.0001
    for a, b in ((first[0], first[1]), (first[0], other[0])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01


def test_noise_has_the_drawn_standard_deviation_and_is_the_same_whenever_replayed() -> None:
    assert_is_noise(CPU)


def test_torch_pins_what_goes_to_the_device_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning itself needs a GPU."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    given = pack(boxes(2, 5))
    found = pin_memory(given)
    assert isinstance(found, Boxes)
    assert [id(tensor) for tensor in pinned] == [id(given.images), id(given.labels)]
    assert torch.equal(found.images, given.images)
    assert found[2:4] == given[2:4]
    assert (found.augmentations, found.keys) == (given.augmentations, given.keys)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def batches(dataset, kind: type[SliceBatches], size: tuple[int, int] = (32, 40)) -> SliceBatches:
    cases = PreprocessedCases(dataset)
    draws = Draws(cases, size, batch_size=4, forced=1 / 3, seed=9, stream=Stream.TRAINING)
    settings = SampleSettings(AugmentationSettings(CHANNELS, (-np.pi, np.pi)), (), None)
    return kind(cases, draws, settings, range(4))


def loader(dataset, workers: int) -> BatchLoader:
    source = batches(dataset, BoxBatches)
    finish = DeviceAugmentation(source.draws.size, source.settings, CPU)
    return BatchLoader(source, first_step=2, workers=workers, pin_memory=False, finish=finish)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_makes_the_batches_of_one_that_augments_in_its_workers(dataset, workers: int) -> None:
    """With the noise: on a CPU it is the same generator's."""
    expected = batches(dataset, SliceBatches)
    seen = set()
    for step, batch in enumerate(itertools.islice(loader(dataset, workers), 20), start=2):
        its = expected.batch(step)
        assert batch["keys"] == its["keys"]
        assert (batch["target"] != its["target"]).float().mean() < 1e-3
        torch.testing.assert_close(batch["data"], its["data"], rtol=0, atol=1e-4 * float(np.ptp(its["data"])))
        seen |= {box.augmentation.noise_std > 0 for box in expected.boxes(step)}
    assert seen == {False, True}


def handed_over(source: BoxBatches, step: int) -> int:
    given = source.hand_over(step)
    return given.images.nbytes + given.labels.nbytes


def test_no_box_is_larger_than_the_shared_memory_that_is_asked_for(dataset, monkeypatch) -> None:
    monkeypatch.setattr(drawn, "SCALING_PROBABILITY", 1)
    monkeypatch.setattr(drawn, "ROTATION_PROBABILITY", 1)
    of_pixel = 4 * CHANNELS + 2
    small = batches(dataset, BoxBatches, size=(12, 12))
    largest = max(handed_over(small, step) for step in range(300))
    assert 0.6 < largest / small.most_bytes() <= 1
    assert largest > 2 * 4 * of_pixel * 12 * 12
    whole = batches(dataset, BoxBatches, size=SHAPE[1:])
    assert max(handed_over(whole, step) for step in range(30)) == whole.most_bytes() == 4 * of_pixel * 40 * 48


def test_a_drawn_box_fits_at_every_angle(dataset) -> None:
    """The corners of a square of 11 pixels' side are 15.6 apart, turned and enlarged 21.8."""
    most = batches(dataset, BoxBatches, size=(12, 12)).most_bytes() // 4 // (4 * CHANNELS + 2)
    widest = replace(NOTHING, scaling=1.4)
    for angle, start in itertools.product(np.linspace(-np.pi, np.pi, 73), (0, 0.5)):
        sides = source_box(replace(widest, rotation_rad=float(angle)).matrix((start, start), (12, 12)), (12, 12))
        assert np.prod([after - first for first, after in sides]) <= most == 24**2


def test_too_little_shared_memory_is_an_error_before_the_kernel_kills_a_worker(dataset, monkeypatch) -> None:
    made = loader(dataset, workers=1)
    enough = 3 * made.batches.most_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=enough - 1))
    with pytest.raises(DataError, match="shared memory"):
        next(made)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=enough))
    next(made)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_case_is_told_in_one_sentence_by_workers_too(tmp_path, workers: int) -> None:
    made = loader(write_dataset(tmp_path, cases=1), workers)
    (tmp_path / "case_0.pkl").write_bytes(b"half")
    with pytest.raises(DataError, match="^The preprocessed case case_0"):
        list(itertools.islice(made, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_batches_of_the_cpu_without_being_waited_for() -> None:
    given, cuda, regions = boxes(2, 60, noise_std=0.0), torch.device("cuda"), ((1, 2), 3)
    expected, expected_regions = on_device(given, (True, False)), on_device(given, (True, False), regions)
    on_device(given, device=cuda)  # whatever the first use of a GPU waits for
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = on_device(given, (True, False), device=cuda)
        found_regions = on_device(given, (True, False), regions, cuda)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    differs = found["target"].cpu() != expected["target"]
    assert differs.float().mean() < 1e-3
    assert (found_regions["target"].cpu() != expected_regions["target"]).float().mean() < 1e-3
    off = (found["data"].cpu() - expected["data"]).abs().masked_fill(differs, 0)
    assert (off.amax((2, 3)) <= 1e-4 * (expected["data"].amax((2, 3)) - expected["data"].amin((2, 3)))).all()
    assert_is_noise(cuda)
