"""Cross-entropy between teacher targets and student logits over very many prototypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretraining.losses.rows import rows_per_chunk


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None, temperature: float) -> Tensor:
    """Return ``sum_n w_n sum_k -q_nk log_softmax(logits_n / temperature)_k``.

    Computed in float32 a few rows at a time. The gradient is computed in the forward pass, too, and kept in the logits'
    dtype: the only tensor as large as the logits. So backward can run only once, and only the logits get a gradient.

    Args:
        logits: ``(N, K)`` of the student, of any float type; N may be 0.
        targets: ``(N, K)``, of any float type. A row may have any sum: targets of several teachers can be added up
            into one, since the loss is linear in them.
        weights: ``(N,)`` of the rows, or None for ones.
        temperature: The student's.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: Logits and targets differ in shape.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape")
    if weights is None:
        weights = torch.ones(len(logits), device=logits.device)
    loss: Tensor = _SoftCrossEntropy.apply(logits, targets, weights.float(), temperature)
    return loss


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
        rows = rows_per_chunk(logits.shape[1], logits.device)
        losses = torch.empty_like(weights)
        descent = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), rows):
            some = slice(start, start + rows)
            q = targets[some].float()
            z = logits[some].float() / temperature
            p = z.softmax(1)
            mass = q.sum(1)
            log_partition = z.amax(1) - p.amax(1).log()
            losses[some] = mass * log_partition - (q * z).sum(1)
            if descent is not None:
                # weights come in the backward pass: without them values fit float16, too
                torch.addcmul(q, p, mass[:, None], value=-1, out=descent[some])
        if descent is not None:
            ctx.save_for_backward(descent, weights / -temperature)
        return (losses * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None, None]:
        descent, scale = ctx.saved_tensors
        scale = (scale * incoming)[:, None]
        rows = rows_per_chunk(descent.shape[1], descent.device)
        # in place, to hold no second tensor of this size; autograd refuses a second backward pass for it
        for some, factors in zip(descent.split(rows), scale.split(rows), strict=True):
            some.mul_(factors)
        return descent, None, None, None
