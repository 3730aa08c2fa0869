"""How many floating-point operations a training step asks for, counted from the shapes alone.

Matrix products and convolutions count, two operations for a multiplication and an addition, and so do the products
of attention (Q K' and A V) over whole sequences; norms, activations, softmax, Sinkhorn and the optimizer do not. A
backward pass costs twice its forward. This is the "model FLOPs" of MFU (PaLM, Chowdhery et al. 2022, appendix B):
what is computed twice to save memory is not counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnunetv2_meddino.networks.vit import ViTConfig
from pretraining.model.config import HeadConfig

FORWARD, FORWARD_AND_BACKWARD = 1, 3
GLOBAL_CROPS = 2


@dataclass(frozen=True)
class StepFlops:
    """Operations of one training step for one image."""

    student: float
    """The student's backbone on all crops, forward and backward."""
    teacher: float
    """The teacher's backbone on the global crops, forward."""
    gram_teacher: float
    """The Gram teacher's backbone on the Gram crops, forward."""
    heads: float
    """DINO and iBOT head of student (forward and backward) and teacher (forward)."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.student + self.teacher + self.gram_teacher + self.heads


def step_flops(
    vit: ViTConfig,
    *,
    global_size: int,
    local_size: int,
    num_local: int,
    masked_patches: float,
    dino_head: HeadConfig,
    ibot_head: HeadConfig,
    gram_size: int | None = None,
    drop_path: float = 0.0,
    channels: int = 1,
) -> StepFlops:
    """Count the operations of one training step for one image.

    Args:
        vit: The backbone.
        global_size: Side of the two global crops in pixels; patches that are not full are cut off.
        local_size: Side of the local crops in pixels.
        num_local: Local crops of an image.
        masked_patches: Masked patches of an image's global crops together, on average.
        dino_head: Sees the class tokens.
        ibot_head: Sees the masked patches.
        gram_size: Side of the Gram teacher's two crops, or None without one.
        drop_path: Share of the samples that are left out of each of the student's residual branches.
        channels: Of the crops. A grey image costs a third of a colour image in the patch embedding.
    """

    def forward(size: int, kept: float = 1.0) -> float:
        return patch_embedding_flops(vit, size, channels) + kept * blocks_flops(vit, size)

    embedding = GLOBAL_CROPS * patch_embedding_flops(vit, global_size, channels)
    embedding += num_local * patch_embedding_flops(vit, local_size, channels)
    crops = GLOBAL_CROPS * forward(global_size, 1 - drop_path) + num_local * forward(local_size, 1 - drop_path)
    student_rows = GLOBAL_CROPS + num_local
    heads = head_flops(vit.embed_dim, dino_head) * (FORWARD_AND_BACKWARD * student_rows + FORWARD * GLOBAL_CROPS)
    heads += head_flops(vit.embed_dim, ibot_head) * (FORWARD_AND_BACKWARD + FORWARD) * masked_patches
    return StepFlops(
        student=FORWARD_AND_BACKWARD * crops - embedding,  # an image needs no gradient
        teacher=GLOBAL_CROPS * forward(global_size),
        gram_teacher=0.0 if gram_size is None else GLOBAL_CROPS * forward(gram_size),
        heads=heads,
    )


def patch_embedding_flops(vit: ViTConfig, size: int, channels: int) -> float:
    """Return the operations that turn a square image into patches."""
    return 2.0 * _patches(vit, size) * channels * vit.patch_size**2 * vit.embed_dim


def blocks_flops(vit: ViTConfig, size: int) -> float:
    """Return the operations of all blocks for one square image, forward."""
    tokens = _patches(vit, size) + 1 + vit.num_registers
    projections = 4 * vit.embed_dim**2  # queries, keys, values, output
    mlp = (3 if vit.swiglu else 2) * vit.embed_dim * vit.mlp_hidden
    attention = 2 * tokens * vit.embed_dim  # of one token with all
    return 2.0 * vit.depth * tokens * (projections + mlp + attention)


def head_flops(width: int, head: HeadConfig) -> float:
    """Return the operations of a projection head for one token, forward."""
    widths = [width, *[head.hidden] * (head.layers - 1), head.bottleneck, head.prototypes]
    return 2.0 * sum(into * out for into, out in zip(widths[:-1], widths[1:], strict=True))


def _patches(vit: ViTConfig, size: int) -> int:
    return (size // vit.patch_size) ** 2
