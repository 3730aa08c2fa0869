"""The Gram loss, which holds similarities of patches to those of an earlier teacher (DINOv3, section 4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.losses.config import GramConfig
from pretraining.losses.rows import rows_at_once


def gram_loss(student: Tensor, teacher: Tensor, config: GramConfig, masks: Tensor | None = None) -> Tensor:
    """Return the mean squared difference between the similarity matrices of the student's and the teacher's patches.

    In float32. Similarities of a few images at a time are computed, and again in the backward pass: at 768 pixels one
    image has 2304 x 2304 of them.

    Args:
        student: ``(N, P, D)`` patches of the global crops, masked ones among them.
        teacher: ``(N, P', D)`` patches of the Gram teacher; they get no gradient. Of another number than P, they are
            resized to the student's grid.
        config: options.
        masks: ``(N, P)`` bool, True where the student saw no patch; needed where ``config.tokens`` is not ``all``.

    Returns:
        A float32 scalar; 0 if no patch is left.

    Raises:
        ConfigurationError: a grid to be resized is not square, or masks are needed and missing.
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
        patches = student.shape[1]
        images = rows_at_once(patches**2, student.device)
        error = student.new_zeros(())
        for some, theirs in zip(student.split(images), teacher.split(images), strict=True):
            error = error + checkpoint(
                _squared_error, some, theirs, config.negatives, use_reentrant=False, preserve_rng_state=False
            )
        return error / max(1, len(student) * patches**2)


def resize_patches(patches: Tensor, count: int) -> Tensor:
    """Resize square grids of patches ``(N, P', D)`` to ``(N, count, D)``.

    Bicubic, corners not aligned, no antialiasing, as the reference does.

    Raises:
        ConfigurationError: a grid is not square.
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


def _squared_error(student: Tensor, teacher: Tensor, negatives: str) -> Tensor:
    """Return the summed squared difference of similarities, from patches ``(n, P, D)``."""
    ours, theirs = student @ student.mT, teacher @ teacher.mT
    if negatives == "remove":
        ours = ours.clamp_min(0)
    if negatives != "keep":
        theirs = theirs.clamp_min(0)
    return F.mse_loss(ours, theirs, reduction="sum")
