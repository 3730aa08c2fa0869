import pytest
import torch
from safetensors.torch import load_file

from pretraining.losses.dino import dino_loss, pair_shares
from tests.conftest import shared_path


@pytest.fixture
def golden():
    return load_file(shared_path("golden/losses/dino_cls.safetensors"))


@pytest.mark.parametrize(
    ("ignore_diagonal", "name"), [(True, "global_ignore_diag"), (False, "global_full")], ids=["opposite", "all pairs"]
)
def test_terms_and_gradients_are_those_of_the_reference(golden, ignore_diagonal, name):
    student_global = golden[f"{name}/student_logits"].flatten(0, 1).requires_grad_()
    student_local = golden["local/student_logits"].flatten(0, 1).requires_grad_()
    targets = golden["teacher_probs"].flatten(0, 1)
    terms = dino_loss(student_global, student_local, targets, ignore_diagonal=ignore_diagonal)
    (terms.local + terms.global_).backward()
    for term, student, key in ((terms.local, student_local, "local"), (terms.global_, student_global, name)):
        torch.testing.assert_close(term.detach().reshape(1), golden[f"{key}/loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(student.grad, golden[f"{key}/d_student"].flatten(0, 1), rtol=0, atol=1e-6)


def test_bfloat16_is_close(golden):
    logits = golden["global_ignore_diag/student_logits"].flatten(0, 1).bfloat16()
    local = golden["local/student_logits"].flatten(0, 1).bfloat16()
    terms = dino_loss(logits, local, golden["teacher_probs"].flatten(0, 1))
    torch.testing.assert_close(terms.local.reshape(1), golden["local/loss"], rtol=1e-2, atol=0)
    torch.testing.assert_close(terms.global_.reshape(1), golden["global_ignore_diag/loss"], rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("num_local", "ignore_diagonal", "local"),
    [(8, True, 8 / 9), (8, False, 4 / 5), (4, True, 4 / 5), (1, False, 1 / 3)],
)
def test_shares_count_pairs_of_crops(num_local, ignore_diagonal, local):
    assert pair_shares(num_local, ignore_diagonal=ignore_diagonal) == pytest.approx((local, 1 - local))
