import pytest
import torch
from safetensors.torch import load_file

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.losses import GramConfig, rows
from pretraining.losses.gram import gram_loss, resize_patches
from tests.conftest import shared_path

RUNS = {
    "default_img": GramConfig(),
    "batch_level": GramConfig(level="batch"),
    "remove_neg_img": GramConfig(negatives="remove"),
    "remove_teacher_neg_img": GramConfig(negatives="remove_teacher"),
    "no_norm_img": GramConfig(normalize=False),
    "masked_only": GramConfig(level="batch", tokens="masked"),
    "unmasked_only": GramConfig(level="batch", tokens="unmasked"),
}


@pytest.fixture(scope="module")
def golden():
    return load_file(shared_path("golden/losses/gram.safetensors"))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("chunk", [1, 2 * 81, 2**18])
def test_loss_and_gradient_are_those_of_the_reference(golden, name, chunk, monkeypatch):
    monkeypatch.setitem(rows.CHUNK_ELEMENTS, "cpu", chunk)
    student = golden["student"].clone().requires_grad_()
    teacher = golden["teacher"].clone().requires_grad_()
    loss = gram_loss(student, teacher, RUNS[name], golden["mask"])
    loss.backward()
    torch.testing.assert_close(loss.detach().reshape(1), golden[f"{name}/loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(student.grad, golden[f"{name}/d_student"], rtol=1e-4, atol=1e-7)
    assert teacher.grad is None


@pytest.mark.parametrize("case", [0, 1, 2])
def test_resizing_is_that_of_the_reference(case):
    tensors = load_file(shared_path("golden/ops/gram_resize_bicubic.safetensors"))
    out = tensors[f"{case}/out"]
    torch.testing.assert_close(resize_patches(tensors[f"{case}/in"], out.shape[1]), out, rtol=0, atol=1e-5)


def test_teacher_patches_are_resized_before_they_are_normalised():
    student, teacher = drawn(2, 16, 6), drawn(2, 64, 6, seed=1)
    teacher *= torch.linspace(0.2, 5, 64)[None, :, None]  # lengths that a resize after normalising would lose
    grid = teacher.transpose(1, 2).reshape(2, 6, 8, 8)
    small = torch.nn.functional.interpolate(grid, (4, 4), mode="bicubic").reshape(2, 6, 16).transpose(1, 2)
    unit = [x.double() / x.double().norm(dim=2, keepdim=True) for x in (student, small)]
    expected = (unit[0] @ unit[0].mT - unit[1] @ unit[1].mT).square().mean()
    torch.testing.assert_close(gram_loss(student, teacher, GramConfig()).double(), expected, rtol=1e-5, atol=0)


def test_bfloat16_and_autocast_leave_single_precision(golden):
    student, teacher = golden["student"].bfloat16().requires_grad_(), golden["teacher"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = gram_loss(student, teacher, GramConfig())
    loss.backward()
    assert loss.dtype == torch.float32
    exact = golden["student"].bfloat16().float().requires_grad_()
    reference = gram_loss(exact, teacher.float(), GramConfig())
    reference.backward()
    torch.testing.assert_close(loss.detach(), reference.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(student.grad.float(), exact.grad, rtol=2**-7, atol=0)


def test_keeps_no_similarity_matrix_for_the_backward_pass():
    kept = []
    student = drawn(2, 25, 6).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        gram_loss(student, drawn(2, 25, 6, seed=1), GramConfig())
    assert torch.Size((2, 25, 25)) not in kept


def test_no_patch_left_gives_zero():
    config = GramConfig(level="batch", tokens="masked")
    student = drawn(2, 9, 4).requires_grad_()
    loss = gram_loss(student, drawn(2, 9, 4, seed=1), config, torch.zeros(2, 9, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_refuses_grids_that_are_no_square_and_missing_masks():
    with pytest.raises(ConfigurationError, match="12 patches cannot be resized to the student's 9"):
        gram_loss(drawn(1, 9, 4), drawn(1, 12, 4), GramConfig())
    with pytest.raises(ConfigurationError, match="masked patches needs the masks"):
        gram_loss(drawn(1, 9, 4), drawn(1, 9, 4), GramConfig(level="batch", tokens="masked"))
