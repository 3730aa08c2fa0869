import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF

from pretraining.views.resize import crop_resize, resize

BOXES = torch.tensor(
    [
        [[0, 0, 200, 160], [10, 20, 100, 130], [3, 150, 7, 9], [199, 159, 1, 1]],
        [[50, 0, 64, 64], [0, 30, 200, 40], [120, 60, 33, 90], [0, 0, 2, 160]],
    ]
)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 200, 160, generator=torch.Generator().manual_seed(0))


def region(images, batch, view, flip):
    top, left, height, width = BOXES[batch, view].tolist()
    crop = images[batch, None, None, top : top + height, left : left + width]
    return crop.flip(-1) if flip else crop


@pytest.mark.parametrize("size", [16, 64, 112, 256])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_interpolating_each_region_by_itself(images, size, flip):
    ours = crop_resize(images, BOXES, torch.full((2, 4), flip), size)
    for batch in range(2):
        for view in range(4):
            crop = region(images, batch, view, flip)
            theirs = F.interpolate(crop, size=(size, size), mode="bicubic", antialias=True)[0, 0]
            torch.testing.assert_close(ours[batch, view], theirs, atol=1e-5, rtol=0)


def test_equals_torchvisions_resized_crop(images):
    ours = crop_resize(images, BOXES, torch.zeros(2, 4, dtype=torch.bool), 96)
    for batch in range(2):
        for view in range(4):
            theirs = TF.resized_crop(
                images[batch, None],
                *BOXES[batch, view].tolist(),
                [96, 96],
                interpolation=TF.InterpolationMode.BICUBIC,
                antialias=True,
            )[0]
            torch.testing.assert_close(ours[batch, view], theirs, atol=1e-5, rtol=0)


def test_every_sample_may_have_its_own_flip(images):
    flips = torch.tensor([[True, False, True, False], [False, False, True, True]])
    ours = crop_resize(images, BOXES, flips, 32)
    plain = crop_resize(images, BOXES, torch.zeros_like(flips), 32)
    expected = torch.where(flips[..., None, None], plain.flip(-1), plain)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_nothing_outside_of_a_region_is_looked_at(images):
    spoilt = images.clone()
    spoilt[:, :, 150:] = 1e6
    spoilt[:, 150:] = 1e6
    boxes = torch.tensor([[[0, 0, 150, 150], [100, 80, 50, 70]]] * 2)
    flips = torch.tensor([[True, False]] * 2)
    assert torch.equal(crop_resize(spoilt, boxes, flips, 64), crop_resize(images, boxes, flips, 64))


@pytest.mark.parametrize(("side", "size"), [(96, 48), (48, 96), (50, 50), (64, 40)])
def test_resizing_whole_images_equals_torch(side, size):
    images = torch.rand(3, 2, side, side, generator=torch.Generator().manual_seed(1))
    theirs = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
    torch.testing.assert_close(resize(images, size), theirs, atol=1e-5, rtol=0)
