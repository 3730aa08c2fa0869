import pytest
import torch
from safetensors.torch import load_file

from pretraining.losses.ibot import ibot_loss
from tests.conftest import shared_path


@pytest.fixture
def golden():
    return load_file(shared_path("golden/losses/ibot_patch.safetensors"))


def test_loss_and_gradient_are_those_of_the_reference(golden):
    """Some crops have no masked patch and count all the same."""
    assert (golden["masks"].sum(1) == 0).any()
    student = golden["student_logits"].requires_grad_()
    loss = ibot_loss(student, golden["sk/0.07/probs"], golden["masks_weight"], len(golden["masks"]))
    loss.backward()
    torch.testing.assert_close(loss.detach().reshape(1), golden["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(student.grad, golden["d_student"], rtol=0, atol=1e-6)


def test_bfloat16_is_close(golden):
    student = golden["student_logits"].bfloat16()
    loss = ibot_loss(student, golden["sk/0.07/probs"], golden["masks_weight"], len(golden["masks"]))
    torch.testing.assert_close(loss.reshape(1), golden["loss"], rtol=1e-2, atol=0)


def test_no_masked_patch_gives_zero(golden):
    student = golden["student_logits"][:0].requires_grad_()
    loss = ibot_loss(student, golden["sk/0.07/probs"][:0], golden["masks_weight"][:0], 4)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == student.shape
