"""The plugin's ViT as it is pretrained: masked patches, stochastic depth that saves its work, rescaled positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.models.eva import EvaBlock
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_meddino.networks.vit import VisionTransformer, ViTConfig
from pretraining.groups import Share


class Features(NamedTuple):
    """Tokens after the final norm."""

    cls: Tensor
    """``(B, D)``."""
    registers: Tensor
    """``(B, R, D)``."""
    patches: Tensor
    """``(B, P, D)``, row by row."""


class KeptRows(NamedTuple):
    """The samples for which the residual branches of a block are computed."""

    attention: Tensor
    """``(k,)`` positions in the batch."""
    mlp: Tensor
    """``(k',)``."""
    scale: float
    """Factor of the residuals: samples of the group over samples that are computed."""


class SubsetBlock(EvaBlock):
    """A transformer block whose residual branches can be computed for a part of the batch only.

    Random numbers are drawn outside, so that the block can be compiled, and recomputed for its gradients.
    """

    checkpointed = False
    """Keep only the input for the backward pass, and recompute the block there."""

    def forward(  # type: ignore[override]
        self, x: Tensor, rope: Tensor | None = None, rows: KeptRows | None = None
    ) -> Tensor:
        """Map ``(B, N, D)`` to the same shape.

        Args:
            x: Tokens.
            rope: Rotary table, ``(P, 2 * head width)``.
            rows: For which samples the branches are computed; None computes all.
        """
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(self._compute, x, rope, rows, use_reentrant=False, preserve_rng_state=False)
        return self._compute(x, rope, rows)

    def _compute(self, x: Tensor, rope: Tensor | None, rows: KeptRows | None) -> Tensor:
        if rows is None:
            return super().forward(x, rope=rope)
        attention, mlp, scale = rows
        x = _add_residual(x, attention, scale, lambda part: self.gamma_1 * self.attn(self.norm1(part), rope=rope))
        return _add_residual(x, mlp, scale, lambda part: self.gamma_2 * self.mlp(self.norm2(part)))


def _add_residual(x: Tensor, rows: Tensor, scale: float, branch: Callable[[Tensor], Tensor]) -> Tensor:
    if not len(rows):  # attention refuses an empty batch, and data parallelism parameters without a gradient
        rows, scale = rows.new_zeros(1), 0.0
    part = x.index_select(0, rows)  # its gradient is added up row by row; that of x[rows] sorts the rows on a GPU
    return x.index_add(0, rows, branch(part).to(x.dtype), alpha=scale)


class PretrainingViT(VisionTransformer):
    """DINOv3 ViT with a mask token and the two random elements of its pretraining.

    Both act only where ``forward`` is given a generator, which teachers never are: batch-subset stochastic depth (one
    rate for all blocks), and the scale of the patch coordinates, log-uniform and drawn anew for every block.

    Args:
        config: The architecture.
        drop_path: Share of the samples left out of each residual branch.
        rope_rescale: Largest factor of the coordinates, the smallest being its inverse; None for no scaling.
        untied_local_norm: A final norm of its own for class and register tokens of local crops in training.
        in_channels: Channels of the images.
    """

    block_class = SubsetBlock

    def __init__(
        self,
        config: ViTConfig,
        *,
        drop_path: float = 0.0,
        rope_rescale: float | None = None,
        untied_local_norm: bool = False,
        in_channels: int = 1,
    ) -> None:
        super().__init__(config, in_channels)
        self.drop_path_rate, self.rope_rescale = drop_path, rope_rescale
        self.mask_token = nn.Parameter(torch.zeros(1, config.embed_dim))
        self.local_cls_norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps) if untied_local_norm else None

    def forward(  # type: ignore[override]
        self,
        image: Tensor,
        masks: Tensor | None = None,
        *,
        generator: Generator | None = None,
        share: Share | None = None,
        local: bool = False,
    ) -> Features:
        """Return the tokens of the last block.

        Args:
            image: ``(B, C, H, W)``; incomplete patches at the right and the bottom are cut off, as in the reference.
            masks: ``(B, P)`` bool, patches that are replaced by the mask token before the first block.
            generator: On the CPU; source of what is random in training, in the same state for all shares of a group.
            share: What the slices are of their group; by default each image is a slice, and they are all.
            local: Whether these are local crops, whose class token has a norm of its own if the network has one.
        """
        patch = self.config.patch_size
        rows, columns = image.shape[-2] // patch, image.shape[-1] // patch
        tokens = self.embed(image[..., : rows * patch, : columns * patch])
        if masks is not None:
            tokens = torch.where(masks[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = self.with_prefix(tokens)
        tables = self._tables((rows, columns), image.device, generator)
        kept = self._kept_rows(len(image), share or Share.whole(len(image)), image.device, generator)
        for block, table, subset in zip(self.blocks, tables, kept, strict=True):
            tokens = block(tokens, table, subset)
        return self._normed(tokens, local=local)

    def _tables(self, grid: tuple[int, int], device: torch.device, generator: Generator | None) -> list[Tensor]:
        depth = len(self.blocks)
        if generator is None or self.rope_rescale is None:
            return [self.rotation(grid, device)] * depth
        exponents = 2 * torch.rand(depth, generator=generator) - 1
        scales = torch.exp(exponents * math.log(self.rope_rescale))
        return list(self.rotation(grid, device, scales))

    def _kept_rows(
        self, batch: int, share: Share, device: torch.device, generator: Generator | None
    ) -> list[KeptRows] | list[None]:
        """Draw the samples that each branch of each block computes: of a group as many as in the reference.

        From every stratum the same number is chosen, or one more, so that processes which share a group have equal work
        and few shapes. Which strata have one more changes from call to call: every sample is as likely as any other.
        """
        depth = len(self.blocks)
        if generator is None or self.drop_path_rate == 0:
            return [None] * depth
        crops, strata = batch // share.count, share.group // share.stratum
        kept = max(int(crops * share.group * (1 - self.drop_path_rate)), 1)
        # every process draws for the whole group, and then takes what concerns its own slices
        turn = int(torch.randint(strata, (1,), generator=generator))
        of_stratum = (torch.arange(strata + 1) * kept // strata).diff().roll(turn)
        draws = torch.rand(depth, 2, strata, crops * share.stratum, generator=generator)
        chosen = draws.argsort(dim=-1).argsort(dim=-1) < of_stratum[:, None]  # the rank of each draw in its stratum
        chosen = chosen.unflatten(-1, (crops, share.stratum)).transpose(2, 3).flatten(3)  # (.., crops, slices)
        own = chosen[..., share.start : share.start + share.count].flatten(0, 1).flatten(1)
        rows = own.nonzero()[:, 1].to(device, non_blocking=True).split(own.sum(1).tolist())
        scale = crops * share.group / kept
        return [KeptRows(*pair, scale) for pair in zip(rows[::2], rows[1::2], strict=True)]

    def _normed(self, tokens: Tensor, *, local: bool) -> Features:
        own = self.local_cls_norm if local and self.training else None
        prefix, patches = self._split(tokens, norm=own is None)
        if own is not None:
            prefix, patches = own(prefix), self.norm(patches)
        return Features(prefix[:, 0], prefix[:, 1:], patches)
