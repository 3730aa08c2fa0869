"""The Gram loss, which holds similarities of patches to those of an earlier teacher (DINOv3, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.losses.config import GramConfig
from pretraining.losses.rows import rows_per_chunk


def gram_loss(student: Tensor, teacher: Tensor, config: GramConfig, masks: Tensor | None = None) -> Tensor:
    """Return the mean squared difference between the similarity matrices of the student's and the teacher's patches.

    In float32, a few images at a time: at 768 pixels one image has 2304 x 2304 similarities. The gradient is
    computed in the forward pass, so that no similarity is kept or computed twice; backward can run only once.

    Args:
        student: ``(N, P, D)`` patches of the global crops, masked ones among them.
        teacher: ``(N, P', D)`` patches of the Gram teacher; they get no gradient. Of another number than P, they are
            resized to the student's grid.
        config: options.
        masks: ``(N, P)`` bool, True where the student saw no patch; needed where ``config.tokens`` is not ``all``.

    Returns:
        A float32 scalar; 0 if no patch is left.

    Raises:
        ConfigurationError: A grid to be resized is not square, or masks are needed and missing.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = student.float(), teacher.detach().float()
        if teacher.shape[1] != student.shape[1]:
            teacher = resize_patches(teacher, student.shape[1])
        if config.normalize:
            student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
        if config.level == "batch":
            chosen = _chosen(config, masks)
            student, teacher = (x.flatten(0, 1)[chosen][None] for x in (student, teacher))
        with _tf32_products():
            error: Tensor = _SquaredError.apply(student, teacher, config.negatives)
        return error / max(1, len(student) * student.shape[1] ** 2)


def resize_patches(patches: Tensor, count: int) -> Tensor:
    """Resize square grids of patches ``(N, P', D)`` to ``(N, count, D)``.

    Bicubic, corners not aligned, no antialiasing, as the reference does.

    Raises:
        ConfigurationError: A grid is not square.
    """
    old, new = math.isqrt(patches.shape[1]), math.isqrt(count)
    if old**2 != patches.shape[1] or new**2 != count:
        raise ConfigurationError(
            f"losses: the Gram teacher's {patches.shape[1]} patches cannot be resized to the student's {count}: both "
            "must form a square; use square global crops and Gram crops"
        )
    grid = patches.transpose(1, 2).unflatten(2, (old, old))
    return F.interpolate(grid, (new, new), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def _chosen(config: GramConfig, masks: Tensor | None) -> Tensor | slice:
    if config.tokens == "all":
        return slice(None)
    if masks is None:
        raise ConfigurationError(f"losses: Gram on {config.tokens} patches needs the masks; none were given")
    return (masks if config.tokens == "masked" else ~masks).flatten()


@contextmanager
def _tf32_products() -> Iterator[None]:
    """Let CUDA multiply float32 matrices in TF32 meanwhile, as the reference does.

    It keeps 10 bits after the point; patches that were computed in bfloat16 have 7.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class _SquaredError(torch.autograd.Function):
    """Summed squared difference of similarities, from patches ``(N, P, D)``.

    Of ``|S S' - T T'|^2`` the gradient of S is ``4 (S S' - T T') S``, since similarities are symmetric.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, negatives: str) -> Tensor:
        images = rows_per_chunk(student.shape[1] ** 2, student.device)
        error, gradient = student.new_zeros(()), torch.empty_like(student)
        for some, other, out in zip(*(x.split(images) for x in (student, teacher, gradient)), strict=True):
            ours, theirs = some @ some.mT, other @ other.mT
            if negatives != "keep":
                theirs.clamp_min_(0)
            seen = ours >= 0 if negatives == "remove" else None
            if seen is not None:
                ours.clamp_min_(0)
            difference = ours.sub_(theirs)
            error += difference.square().sum()
            torch.bmm(difference if seen is None else difference.mul_(seen), some, out=out)
        ctx.save_for_backward(gradient)
        return error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (4 * incoming), None, None
