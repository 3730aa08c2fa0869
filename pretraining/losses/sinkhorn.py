"""Sinkhorn-Knopp centring of the teacher's logits, over micro-batches and processes (SwAV; DINOv2; DINOv3).

The reference makes ``exp(logits / temperature)`` an assignment in which every prototype has the same mass over all
samples of all processes (one division per prototype) and every sample sums to one (one division per sample), a few
times in turn. Only the factors matter, not the matrices in between: an iteration is two products of the matrix of
exponentials with a vector, and after the last division, which is per sample, the assignment is a softmax.

Exponentials are taken relative to the largest of each prototype over all samples, and then to the largest of each
sample. None exceeds 1, every sample and every prototype has a 1, so no sum vanishes, and what underflows was too small
to count both in its sample and in its prototype. Constants of the reference (1 / K, 1 / N, the sum of all) cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pretraining.losses.rows import rows_per_chunk

MicroBatch = Callable[[], Tensor]


class _Kernel(NamedTuple):
    """Exponentials of some samples."""

    values: Tensor
    """``(n, K)``, the largest of each sample 1."""
    factors: Tensor
    """``(n,)``: what each sample was divided by for that."""


@torch.no_grad()
def sinkhorn_scaling(logits: Sequence[MicroBatch], temperature: float, iterations: int = 3) -> Tensor:
    """Return the logarithm of the prototypes' factors.

    All micro-batches of all processes are one population: the result is that of their concatenation. In the first
    iteration samples count by their raw exponentials, as in the reference; they are not softmaxed before.

    Args:
        logits: Gives the teacher's logits ``(N_i, K)`` of each micro-batch, of any float type. Called once for the
            largest values and, unless there is only one micro-batch, once for every iteration, so that a caller may
            compute them again instead of storing them. ``N_i`` may differ, and be 0. Exponentials of a single
            micro-batch are stored, in float32.
        temperature: The teacher's.
        iterations: At least 1 (DINOv3: 3).

    Returns:
        ``log_u`` ``(K,)`` float32, the same on every process. Infinite if there is no sample anywhere.
    """
    if len(logits) == 1:  # computed once, and its exponentials stored: they are needed in every iteration
        only = logits[0]()
        logits = [lambda: only]
    largest = _largest(logits, temperature)
    kernels: Sequence[_Kernel] = list(_kernels(logits, largest, temperature)) if len(logits) == 1 else ()
    factors = None  # of the prototypes; none yet: in the first iteration samples count by their raw exponentials
    with torch.autocast(largest.device.type, enabled=False):  # it would multiply in bfloat16
        for _ in range(iterations):
            mass = torch.zeros_like(largest)
            for kernel in kernels or _kernels(logits, largest, temperature):
                # a sample's factor brings its row, already scaled by prototype, to a sum of 1
                samples = kernel.factors if factors is None else 1 / (kernel.values @ factors)
                mass += samples @ kernel.values  # of each prototype over the samples, which its factor then evens out
            if _is_distributed():
                dist.all_reduce(mass)
            factors = mass.amin() / mass  # at most 1: their common factor cancels but would grow for ever
    # exponentials were taken relative to the largest: undone here, where it is one addition
    return -mass.log() - largest


@torch.no_grad()
def sinkhorn_targets(logits: Tensor, log_u: Tensor, temperature: float) -> Tensor:
    """Return the targets of samples: ``softmax(logits / temperature + log_u)``.

    Args:
        logits: ``(N, K)`` the teacher's, of any float type.
        log_u: ``(K,)`` from ``sinkhorn_scaling``.
        temperature: That of the scaling.

    Returns:
        ``(N, K)`` float32; every row sums to 1.
    """
    targets = torch.empty_like(logits, dtype=torch.float32)
    for rows, out in zip(_chunks(logits), _chunks(targets), strict=True):
        torch.softmax(_scaled(rows, log_u, temperature), 1, out=out)
    return targets


def _largest(logits: Sequence[MicroBatch], temperature: float) -> Tensor:
    """Return each prototype's largest ``logit / temperature`` over all samples ``(K,)`` float32; 0 over none."""
    batches = (micro_batch() for micro_batch in logits)  # one at a time: all of them need not fit into memory
    largest = reduce(torch.maximum, (x.amax(0) if len(x) else x.new_full(x.shape[1:], -torch.inf) for x in batches))
    largest = largest.float()
    if _is_distributed():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.nan_to_num(nan=torch.nan, neginf=0.0) / temperature  # NaN stays: the step must see it


def _kernels(logits: Sequence[MicroBatch], largest: Tensor, temperature: float) -> Iterator[_Kernel]:
    for micro_batch in logits:
        for rows in _chunks(micro_batch()):
            exponents = _scaled(rows, -largest, temperature)
            highest = exponents.amax(1)  # what it divides out cancels from the second iteration on; see ``factors``
            yield _Kernel(exponents.sub_(highest[:, None]).exp_(), highest.exp())


def _chunks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(rows_per_chunk(rows.shape[1], rows.device))


def _scaled(rows: Tensor, shift: Tensor, temperature: float) -> Tensor:
    """Return ``rows / temperature + shift`` in float32, the type of ``shift``, without a float32 copy of the rows."""
    return torch.add(shift, rows, alpha=1 / temperature).float()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
