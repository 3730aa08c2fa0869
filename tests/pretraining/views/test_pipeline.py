from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_meddino.errors import DataError
from pretraining.groups import Share
from pretraining.views import IntensityConfig, MaskConfig, ViewConfig, make_views
from pretraining.views.intensity import intensity_scale, to_input
from tests.pretraining.views.batches import noise, ramp

SMALL = ViewConfig(global_size=64, local_size=32, num_local=3, flip_probability=0.5)
GRAM = replace(SMALL, gram_size=128)
SIDE = 160
SIZES = [(160, 160), (100, 160), (140, 96), (128, 128)]

# values of 0 to SIDE - 1 come through unchanged: the unit scale is exact, the input is the value itself
IDENTITY = IntensityConfig(clip_hu=(0.0, 256.0), mean_hu=0.0, std_hu=1.0)
PLAIN = replace(
    GRAM,
    jitter_probability=0.0,
    global_2_blur_probability=0.0,
    local_blur_probability=0.0,
    intensity=IDENTITY,
)


@pytest.fixture(scope="module")
def batch():
    return noise(4, SIDE, SIZES)


def by_view(crops, batch_size):
    """Crop-major (V * B, 1, s, s) to (B, V, s, s)."""
    return crops[:, 0].unflatten(0, (-1, batch_size)).transpose(0, 1)


def expected_line(start, length, size, flip=False):
    """Coordinates of the centres of ``size`` pixels over ``length`` pixels from ``start`` on."""
    line = start + (torch.arange(size) + 0.5) * length / size - 0.5
    return line.flip(0) if flip else line


def assert_is_ramp(crop, line, scale):
    """The middle of a crop holds the expected coordinates; the kernel flattens a ramp at the border of a region."""
    size = crop.shape[-1]
    margin = size // 8 + int(2 * max(1.0, 1 / scale)) + 1
    middle = slice(margin, size - margin)
    torch.testing.assert_close(crop[middle], line[middle, None].expand(-1, size), atol=0.05, rtol=0)


def test_crops_show_exactly_the_regions_and_flips_that_were_drawn():
    """A slice whose values are coordinates comes back as the coordinates of the region."""
    rows, columns = (make_views(ramp(6, SIDE, axis), PLAIN, seed=3, step=5) for axis in (0, 1))
    assert torch.equal(rows.parameters.boxes, columns.parameters.boxes)
    flips = rows.parameters.flips
    assert flips.any()
    assert not flips.all()
    for views, axis in ((rows, 0), (columns, 1)):
        crops = {
            "global": (by_view(views.global_crops, 6), [0, 1]),
            "gram": (by_view(views.gram_crops, 6), [0, 1]),
            "local": (by_view(views.local_crops, 6), [2, 3, 4]),
        }
        for images, numbers in crops.values():
            size = images.shape[-1]
            for sample in range(6):
                for image, number in zip(images[sample], numbers, strict=True):
                    box = views.parameters.boxes[sample, number].tolist()
                    flip = bool(flips[sample, number]) and axis == 1
                    line = expected_line(box[axis], box[axis + 2], size, flip)
                    assert_is_ramp(image if axis == 0 else image.T, line, box[axis + 2] / size)


def test_gram_crops_show_the_global_crops_unaugmented_at_higher_resolution(batch):
    plain = make_views(batch, replace(PLAIN, intensity=IntensityConfig()), seed=3, step=5)
    smaller = F.interpolate(plain.gram_crops, size=(64, 64), mode="bicubic", antialias=True)
    low, high = plain.global_crops.min(), plain.global_crops.max()
    torch.testing.assert_close(smaller.clamp(low, high), plain.global_crops, atol=1e-4, rtol=0)
    augmented = make_views(batch, replace(GRAM, jitter_probability=1.0), seed=3, step=5)
    assert torch.equal(augmented.gram_crops, plain.gram_crops)
    assert not torch.allclose(augmented.global_crops, plain.global_crops, atol=0.1)


def test_the_order_is_crop_major(batch):
    views = make_views(batch, GRAM, seed=0, step=0)
    assert views.global_crops.shape == (8, 1, 64, 64)
    assert views.local_crops.shape == (12, 1, 32, 32)
    assert views.gram_crops.shape == (8, 1, 128, 128)
    assert views.masks.masks.shape == (8, 16)
    # every slice of one value: the order of the values is the order of the slices
    flat = replace(batch, pixels=torch.arange(4, dtype=torch.int16)[:, None, None].expand(4, SIDE, SIDE).contiguous())
    views = make_views(flat, PLAIN, seed=0, step=0)
    for crops, count in ((views.global_crops, 2), (views.gram_crops, 2), (views.local_crops, 3)):
        torch.testing.assert_close(crops.mean((1, 2, 3)), torch.arange(4.0).repeat(count), atol=1e-3, rtol=0)


def test_regions_never_reach_into_the_padding(batch):
    config = replace(GRAM, jitter_probability=0.0)
    first = make_views(batch, config, seed=1, step=2)
    second = make_views(batch.padded_with(900), config, seed=1, step=2)
    for name in ("global_crops", "local_crops", "gram_crops"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize("rule", ["ct", "window", "zscore", "percentile"])
def test_splitting_a_batch_over_processes_changes_no_crop_and_no_mask(batch, rule):
    config = replace(GRAM, intensity=IntensityConfig(rule=rule, windows_hu=((40, 400), (-600, 1500))))
    whole = make_views(batch, config, seed=7, step=3)
    shares = [Share(start, 2, 4, 2) for start in (0, 2)]
    parts = [make_views(batch.part(s.start, s.start + 2), config, seed=7, step=3, share=s) for s in shares]
    for name in ("global_crops", "local_crops", "gram_crops"):
        joined = torch.cat([by_view(getattr(part, name), 2) for part in parts])
        torch.testing.assert_close(joined, by_view(getattr(whole, name), 4), atol=1e-4, rtol=0)
    masks = torch.cat([by_view(part.masks.masks, 2) for part in parts])
    assert torch.equal(masks, by_view(whole.masks.masks, 4))
    for part in parts:
        assert torch.equal(part.masks.indices, part.masks.masks.flatten().nonzero()[:, 0])
        counts = part.masks.masks.sum(1, keepdim=True).expand_as(part.masks.masks)
        torch.testing.assert_close(part.masks.weights, 1 / counts[part.masks.masks])


def test_the_same_seed_and_step_repeat_and_others_do_not(batch):
    first = make_views(batch, SMALL, seed=0, step=0)
    assert torch.equal(first.local_crops, make_views(batch, SMALL, seed=0, step=0).local_crops)
    assert first.gram_crops is None
    for seed, step in ((1, 0), (0, 1)):
        assert not torch.allclose(first.local_crops, make_views(batch, SMALL, seed=seed, step=step).local_crops)


def test_inputs_keep_to_the_clipping_range(batch):
    views = make_views(batch, replace(GRAM, gram_size=256), seed=0, step=1)
    config = IntensityConfig()
    scale = intensity_scale(batch.pixels[:1], batch.sizes[:1], torch.zeros(1, dtype=torch.int64), config)
    low, high = to_input(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), scale).flatten().tolist()
    for crops in (views.global_crops, views.local_crops, views.gram_crops):
        assert low - 1e-4 <= crops.min()
        assert crops.max() <= high + 1e-4


def test_autocast_does_not_touch_crops(batch):
    exact = make_views(batch, SMALL, seed=0, step=0)
    with torch.autocast("cpu", torch.bfloat16):
        under = make_views(batch, SMALL, seed=0, step=0)
    assert torch.equal(under.global_crops, exact.global_crops)


def test_a_gram_size_below_the_global_one_and_other_patches_are_possible(batch):
    config = replace(SMALL, gram_size=32, masks=MaskConfig(patch_size=8))
    views = make_views(batch, config, seed=0, step=0)
    assert views.gram_crops.shape == (8, 1, 32, 32)
    assert views.masks.masks.shape == (8, 64)


def test_batches_that_are_no_stored_slices_are_refused(batch):
    with pytest.raises(DataError, match="int16"):
        make_views(replace(batch, pixels=batch.pixels.float()), SMALL, seed=0, step=0)
    with pytest.raises(DataError, match="do not fit"):
        make_views(replace(batch, sizes=batch.sizes + 1), SMALL, seed=0, step=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_views_of_the_cpu(batch):
    on_gpu = replace(batch, pixels=batch.pixels.cuda())
    first, second = make_views(batch, GRAM, seed=7, step=3), make_views(on_gpu, GRAM, seed=7, step=3)
    for name in ("global_crops", "local_crops", "gram_crops"):
        torch.testing.assert_close(getattr(second, name).cpu(), getattr(first, name), atol=1e-3, rtol=0)
    assert torch.equal(second.masks.masks.cpu(), first.masks.masks)
