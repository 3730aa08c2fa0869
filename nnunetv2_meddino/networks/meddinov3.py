"""MedDINOv3: a DINOv3 ViT whose tokens from several depths feed a light token decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks.layers import refuse_deep_supervision
from nnunetv2_meddino.networks.lora import add_adapters
from nnunetv2_meddino.networks.precision import network_autocast
from nnunetv2_meddino.networks.token_decoder import TokenDecoder
from nnunetv2_meddino.networks.vit import VisionTransformer, ViTConfig


class MedDINOv3(nn.Module):
    """Segmentation network of MedDINOv3 (Li et al. 2025, arXiv:2509.02379).

    Every argument is a plain JSON value, so that an nnU-Net plans file can hold the whole architecture and a trained
    model needs nothing else to be rebuilt. The first two have the names that nnU-Net calls them by.

    Args:
        input_channels: Channels of the images.
        num_classes: Classes or regions K, background included where there is one.
        vit: Fields of ``ViTConfig``.
        blocks: Indices of the blocks whose tokens are decoded, ascending, the last block among them: ``[2, 5, 8, 11]``
            in MedDINOv3, ``[11]`` in plain Primus.
        drop_path: Stochastic depth of the ViT in training.
        aggregation: ``concat`` or ``project``, see ``TokenDecoder``.
        checkpointing: Trade decoder memory for time in training, see ``TokenDecoder``.
        precision: ``bfloat16`` or ``float16`` under autocast; None chooses by the hardware.
        frozen: Whether the ViT is not trained.
        lora: ``rank`` and ``alpha`` of low-rank adapters, which are then all that is trained of the ViT; None: none.
        deep_supervision: Must be False; there because nnU-Net passes it.

    Raises:
        ConfigurationError: ``blocks`` does not fit the ViT, or deep supervision is asked for.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        vit: Mapping[str, Any],
        blocks: Sequence[int],
        drop_path: float = 0.2,
        aggregation: str = "concat",
        checkpointing: bool = False,
        precision: str | None = None,
        frozen: bool = False,
        lora: Mapping[str, Any] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        config = ViTConfig(**vit)
        refuse_deep_supervision("MedDINOv3", deep_supervision)
        if list(blocks) != sorted(set(blocks)) or not blocks or blocks[0] < 0 or blocks[-1] != config.depth - 1:
            msg = (
                f"blocks is {list(blocks)} for a ViT of {config.depth} blocks: indices must ascend from 0 and end with "
                f"the last block, {config.depth - 1}."
            )
            raise ConfigurationError(msg)
        self.encoder = VisionTransformer(config, input_channels, drop_path)
        if self.encoder.cls_norm is not None:  # acts on tokens that are not decoded: no gradient ever reaches it
            self.encoder.cls_norm.requires_grad_(False)
        if frozen:
            self.encoder.requires_grad_(False)
        if lora is not None:
            add_adapters(self.encoder, **lora)
        self.decoder = TokenDecoder(
            config.embed_dim,
            len(blocks),
            num_classes,
            patch_size=config.patch_size,
            aggregation=aggregation,
            checkpointing=checkpointing,
        )
        self.blocks = tuple(blocks)
        self.precision = precision

    def forward(self, image: Tensor) -> Tensor:
        """Segment images of any size.

        Args:
            image: ``(B, C, H, W)``.

        Returns:
            ``(B, K, H, W)`` float32 logits. H and W that are no multiples of the patch size are padded with zeros
            below and right (the mean intensity, after nnU-Net's normalisation) and the logits cropped back.
        """
        height, width = image.shape[-2:]
        with network_autocast(image.device.type, self.precision):
            tokens = self.encoder.forward_tokens(image, self.blocks)
            logits = self.decoder([t.patches for t in tokens], self.encoder.grid_size(height, width))
        return logits[:, :, :height, :width].contiguous().float()
