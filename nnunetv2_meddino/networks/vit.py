"""The DINOv3 Vision Transformer: an image in, the feature maps of chosen blocks out.

The blocks are those of timm's ``Eva`` (Apache-2.0), which reproduces the DINOv3 forward pass bit for bit from the same
weights; parameters have its names. Architecture: "DINOv3", Simeoni et al. 2025, arXiv:2508.10104. Around them stands
what segmentation needs: a stem for any number of channels, any image size, and the features of several blocks.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from timm.models._features import feature_take_indices
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks.layers import (
    STEM_CHANNELS,
    Stem,
    check_channels,
    pad_to_multiple,
    parts,
    stem_input_channels,
)
from nnunetv2_meddino.networks.rope import RotationDtype, rope_table

ROPE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of one DINOv3 ViT; what the last three fields say is all that the shapes of weights do not show."""

    embed_dim: int
    """Width D of a token."""
    depth: int
    """Number of blocks."""
    num_heads: int
    """Attention heads; ``embed_dim / num_heads`` must be a multiple of 4. 64-wide heads in every released model."""
    mlp_hidden: int
    """Hidden width of the MLP: ``4 * embed_dim`` in S, B and L."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    num_registers: int = 4
    """Register tokens (``storage_tokens`` in Meta's code)."""
    swiglu: bool = False
    """SwiGLU MLP (H+ and 7B) in place of the two-layer GELU MLP."""
    qkv_bias: bool = False
    """Bias on queries and values. Zero in the released S, B and L, absent in MedDINOv3."""
    k_bias: bool = False
    """A bias on keys as well (no released DINOv3 has one; Meta masks it to zero)."""
    untied_cls_norm: bool = False
    """A final norm of its own for the class and register tokens."""
    norm_eps: float = 1e-5
    """LayerNorm epsilon: 1e-5 in the DINOv3 releases, 1e-6 in the MedDINOv3 release."""
    rope_dtype: str = "float32"
    """Type in which RoPE is computed: float32, or bfloat16 to reproduce numbers of the MedDINOv3 release."""
    layer_scale: float = field(default=1e-5, compare=False)
    """What residual branches of a new network are multiplied by, learned from there on; 1e-5 as DINOv3."""

    def __post_init__(self) -> None:
        """Check what timm would only report from deep inside.

        Raises:
            ConfigurationError: A width does not divide, or ``rope_dtype`` is unknown.
        """
        if self.embed_dim % self.num_heads or (self.embed_dim // self.num_heads) % 4:
            msg = (
                f"ViT width {self.embed_dim} with {self.num_heads} heads: each head must be a multiple of 4 wide. "
                "Choose another number of heads."
            )
            raise ConfigurationError(msg)
        if self.rope_dtype not in ROPE_DTYPES:
            raise ConfigurationError(f"rope_dtype is {self.rope_dtype!r}; it must be one of {', '.join(ROPE_DTYPES)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; ``ViTConfig(**d)`` reads them back."""
        return asdict(self)


BACKBONES = {
    "tiny": ViTConfig(embed_dim=96, depth=4, num_heads=3, mlp_hidden=384, layer_scale=1.0),
    "vits16": ViTConfig(embed_dim=384, depth=12, num_heads=6, mlp_hidden=1536),
    "vitb16": ViTConfig(embed_dim=768, depth=12, num_heads=12, mlp_hidden=3072),
    "vitl16": ViTConfig(embed_dim=1024, depth=24, num_heads=16, mlp_hidden=4096),
}
"""Names that ``MEDDINO_BACKBONE`` takes. ``tiny`` is ours, for trying things out on a CPU; no weights exist for it.

Its few blocks count from the first step of a training: with 1e-5 they do next to nothing for hundreds of steps
(docs/evidence.md). "Going deeper with image transformers", Touvron et al. 2021, arXiv:2103.17239, starts deeper
networks lower.
"""


class Tokens(NamedTuple):
    """Output tokens of one block."""

    prefix: Tensor
    """Class token, then register tokens: ``(B, 1 + R, D)``."""
    patches: Tensor
    """Patch tokens, row by row: ``(B, h * w, D)``."""


def evenly_spaced_blocks(depth: int, count: int = 4) -> tuple[int, ...]:
    """Return ``count`` block indices, evenly spaced and ending with the last: 2, 5, 8, 11 for 12 blocks.

    Raises:
        ConfigurationError: The transformer has fewer than ``count`` blocks.
    """
    if depth < count:
        msg = f"{count} feature maps need at least {count} blocks; this ViT has {depth}. Choose a deeper backbone."
        raise ConfigurationError(msg)
    return tuple(round(depth * (i + 1) / count) - 1 for i in range(count))


def layer_index(name: str, depth: int) -> int:
    """Return which layer of a ViT, counted from its input, a parameter belongs to.

    Learning rates that shrink towards the input shrink by it ("ELECTRA", Clark et al. 2020, arXiv:2003.10555; "BEiT",
    Bao et al. 2021, arXiv:2106.08254).

    Args:
        name: Of the parameter, in the ViT.
        depth: Number of blocks.

    Returns:
        0 for what makes tokens, 1 for the first block, ``depth + 1`` for what follows the last block.
    """
    if name.startswith(("patch_embed", "cls_token", "reg_token", "mask_token")):  # the last is pretraining's
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1


class VisionTransformer(nn.Module):
    """DINOv3 ViT with register tokens and rotary position embedding.

    ``forward_features`` and ``forward_intermediates`` are what timm's networks offer to decoders and detectors, and
    give what timm's own DINOv3 gives from the same weights; of images of any size, and with the class norm that some
    DINOv3 have.

    Args:
        config: The architecture.
        in_channels: Channels of the images, any number from 1.
        drop_path: Stochastic depth, the same rate in every block (as the reference, no ramp), drawn per sample.
    """

    block_class: ClassVar[type[EvaBlock]] = EvaBlock

    def __init__(self, config: ViTConfig, in_channels: int = STEM_CHANNELS, drop_path: float = 0.0) -> None:
        super().__init__()
        width, registers, patch = config.embed_dim, config.num_registers, config.patch_size
        self.config = config
        self.in_channels = in_channels
        self.num_prefix_tokens = 1 + registers
        stem = Stem(stem_input_channels(in_channels), width, patch, stride=patch)
        self.patch_embed = nn.ModuleDict({"proj": stem})  # timm's name of it is patch_embed.proj
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.reg_token = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.blocks = nn.ModuleList([self._block(drop_path) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.cls_norm = nn.LayerNorm(width, eps=config.norm_eps) if config.untied_cls_norm else None
        self._initialise()

    def _block(self, drop_path: float) -> EvaBlock:
        config = self.config
        block = self.block_class(
            dim=config.embed_dim,
            num_heads=config.num_heads,
            qkv_bias=config.qkv_bias,
            mlp_ratio=(config.mlp_hidden + 0.5) / config.embed_dim,  # timm rounds the product down
            swiglu_mlp=config.swiglu,
            swiglu_align_to=1 if config.swiglu else 0,
            num_prefix_tokens=self.num_prefix_tokens,
            rotate_half=True,
            drop_path=drop_path,
            init_values=config.layer_scale,
            norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
        )
        if config.k_bias:  # a buffer in timm's, as no released DINOv3 learns it
            bias = block.attn.k_bias
            del block.attn.k_bias
            block.attn.k_bias = nn.Parameter(bias)
        dtype = ROPE_DTYPES[config.rope_dtype]
        if dtype != torch.float32:
            block.attn.q_norm = block.attn.k_norm = RotationDtype(dtype)
        return block

    def _initialise(self) -> None:
        """Draw linear layers and tokens from a truncated normal of 0.02, as DINOv3, whatever the depth of a block."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches of an image, counting a patch that is only partly filled."""
        patch = self.config.patch_size
        return parts(height, patch), parts(width, patch)

    def embed(self, image: Tensor) -> Tensor:
        """Return the patch embeddings ``(B, N, D)`` of an image ``(B, C, H, W)``, sides multiples of the patch size.

        Raises:
            ConfigurationError: The image has another number of channels than the network.
        """
        check_channels(image, self.in_channels)
        return self.patch_embed.proj(image).flatten(2).transpose(1, 2)

    def with_prefix(self, patches: Tensor) -> Tensor:
        """Put class and register tokens before ``(B, N, D)``, giving ``(B, 1 + R + N, D)``."""
        prefix = [t for t in (self.cls_token, self.reg_token) if t is not None]
        # not len(patches): that is a constant of the batch size in what torch.export traces
        return torch.cat([*(t.expand(patches.shape[0], -1, -1) for t in prefix), patches], dim=1)

    def rotation(self, grid: tuple[int, int], device: torch.device, scales: Tensor | None = None) -> Tensor:
        """Return the rotary table of a patch grid, or one for each scale (see ``rope_table``)."""
        head_dim = self.config.embed_dim // self.config.num_heads
        return rope_table(*grid, head_dim, scales=scales, dtype=ROPE_DTYPES[self.config.rope_dtype], device=device)

    def forward_tokens(self, image: Tensor, blocks: Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens that chosen blocks put out.

        Args:
            image: ``(B, C, H, W)``. Where H or W is no multiple of the patch size, zeros are added below and right.
            blocks: Indices of the blocks, from 0, ascending. Later blocks are not computed.
            norm: Pass each through the final norm, as the reference's ``get_intermediate_layers`` does by default.

        Returns:
            One ``Tokens`` for each block, in the order given.

        Raises:
            ConfigurationError: The image has another number of channels than the network.
        """
        outputs, _ = self._compute(image, blocks, max(blocks) + 1)
        return [self._split(tokens, norm=norm) for tokens in outputs]

    def _compute(self, image: Tensor, taken: Container[int], count: int) -> tuple[list[Tensor], Tensor]:
        """Return what those ``taken`` of the first ``count`` blocks put out, and the last, ``(B, 1 + R + N, D)``."""
        rope = self.rotation(self.grid_size(*image.shape[-2:]), image.device)
        tokens = self.with_prefix(self.embed(pad_to_multiple(image, self.config.patch_size)))
        outputs = []
        for index in range(count):
            tokens = self.blocks[index](tokens, rope=rope)
            if index in taken:
                outputs.append(tokens)
        return outputs, tokens

    def _split(self, tokens: Tensor, *, norm: bool) -> Tokens:
        """Split ``(B, 1 + R + N, D)`` into prefix and patch tokens, normed or not."""
        count = self.num_prefix_tokens
        if norm and self.cls_norm is not None:
            return Tokens(self.cls_norm(tokens[:, :count]), self.norm(tokens[:, count:]))
        if norm:
            tokens = self.norm(tokens)
        return Tokens(tokens[:, :count], tokens[:, count:])

    def forward_features(self, x: Tensor) -> Tensor:
        """Return all tokens of the last block after the final norm, ``(B, 1 + R + N, D)``, of ``(B, C, H, W)``."""
        return torch.cat(self.forward_tokens(x, [len(self.blocks) - 1])[0], dim=1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return features of chosen blocks as timm's networks do, names and order of the arguments included.

        Args:
            x: ``(B, C, H, W)``, any H and W.
            indices: Blocks, negative ones from the end; a number is that many last blocks, None is all.
            return_prefix_tokens: Return pairs of patch and prefix tokens.
            norm: Pass each through the final norm.
            stop_early: Compute no block after the last chosen one.
            output_fmt: ``NCHW``, maps ``(B, D, h, w)``, or ``NLC``, tokens ``(B, h * w, D)``.
            intermediates_only: Return the list of features alone.

        Returns:
            All tokens after the last block that was computed and the final norm; and the features, in the order of the
            blocks.

        Raises:
            ConfigurationError: ``output_fmt`` is neither, or the image has another number of channels.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ConfigurationError(f"output_fmt is {output_fmt!r}; it must be NCHW or NLC.")
        taken, last = feature_take_indices(len(self.blocks), indices)
        outputs, tokens = self._compute(x, taken, last + 1 if stop_early else len(self.blocks))
        features: list[Any] = []
        for prefix, patches in (self._split(output, norm=norm) for output in outputs):
            if output_fmt == "NCHW":
                patches = patches.transpose(1, 2).unflatten(2, self.grid_size(*x.shape[-2:])).contiguous()
            features.append((patches, prefix) if return_prefix_tokens else patches)
        if intermediates_only:
            return features
        return torch.cat(self._split(tokens, norm=True), dim=1), features

    def forward(self, image: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return the normed feature maps of chosen blocks.

        Args:
            image: ``(B, C, H, W)``, any H and W.
            blocks: Indices of the blocks, from 0, ascending.

        Returns:
            One ``(B, D, ceil(H / p), ceil(W / p))`` for each block.
        """
        grid = self.grid_size(*image.shape[-2:])
        return [t.patches.transpose(1, 2).unflatten(2, grid) for t in self.forward_tokens(image, blocks)]
