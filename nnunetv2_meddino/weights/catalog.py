"""The pretrained backbones that have a name: where each comes from, under which licence, and what it expects."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nnunetv2_meddino.networks.mit import MIT_BACKBONES, MiTConfig
from nnunetv2_meddino.networks.vit import BACKBONES, ViTConfig

DINOV3_LICENCE_URL = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"


@dataclass(frozen=True)
class InputStatistics:
    """How the images were normalised on which a backbone was pretrained: ``(clip(x) - mean) / std``."""

    mean: tuple[float, ...]
    """One value for each channel."""
    std: tuple[float, ...]
    """One value for each channel."""
    clip_hu: tuple[float, float] | None
    """Window in Hounsfield units that is applied first, or None for photographs."""
    note: str
    """Unit and origin of the numbers."""


@dataclass(frozen=True)
class CatalogEntry:
    """One pretrained backbone."""

    name: str
    """What a user types."""
    description: str
    backbone: str
    """Its size as a key of ``BACKBONES`` or ``MIT_BACKBONES``."""
    architecture: ViTConfig | MiTConfig
    """What the published file holds; the file is checked against it."""
    licence: str
    licence_url: str
    homepage: str
    repository: str
    """Hub id."""
    filename: str
    """File in the repository."""
    input_statistics: InputStatistics
    note: str = ""
    """What else a user should know before relying on these weights."""
    collections: tuple[str, ...] = ()
    """Public medical collections whose images the pretraining read; empty where none is named by the publisher."""


PHOTOGRAPHS = InputStatistics(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    clip_hu=None,
    note="RGB photographs scaled to [0, 1]; the ImageNet statistics, which the DINOv3 release states too",
)
CT_CLIP_HU, CT_MEAN_HU, CT_STD_HU = (-1000.0, 1000.0), 65.1084213256836, 178.01663208007812
CT = InputStatistics(
    mean=(CT_MEAN_HU,),
    std=(CT_STD_HU,),
    clip_hu=CT_CLIP_HU,
    note="Hounsfield units; from the demo of the MedDINOv3 release. The same grey image goes to all three channels",
)


CT_3M = (
    *("BTCV", "Pancreas-CT", "CHAOS", "LiTS", "KiTS", "WORD", "AbdomenCT-1K", "AMOS22"),
    *("MSD Liver", "MSD Lung", "MSD Pancreas", "MSD Hepatic Vessel", "MSD Spleen", "MSD Colon"),
    *("CT-ORG", "TotalSegmentator", "AbdomenAtlas 3.0"),
)
"""The collections of CT-3M, as section 3.2 of arXiv:2509.02379 names them; it counts the six MSD tasks as five, and 16
in all. Images of the benchmarks' test cases were not excluded (issue 4 of the MedDINOv3 repository)."""


def _dinov3_lvd(backbone: str, size: str, parameters: str) -> CatalogEntry:
    """Describe a DINOv3 release of Meta AI, in the copy that timm's author hosts without a gate."""
    return CatalogEntry(
        name=f"dinov3_{backbone}_lvd1689m",
        description=f"DINOv3 ViT-{backbone[3].upper()}/16 ({parameters} parameters), photographs of LVD-1689M",
        backbone=backbone,
        architecture=BACKBONES[backbone],
        licence="DINOv3 License",
        licence_url=DINOV3_LICENCE_URL,
        homepage="https://github.com/facebookresearch/dinov3",
        repository=f"timm/vit_{size}_patch16_dinov3.lvd1689m",
        filename="model.safetensors",
        input_statistics=PHOTOGRAPHS,
        note=(
            f"The official copy is facebook/dinov3-{backbone}-pretrain-lvd1689m (gated, transformers layout); that hub "
            "id works in place of this name once access is granted. The copy named here leaves out the biases of "
            "queries and values, which timm's author found to be zero in the official file."
        ),
    )


_ENTRIES = (
    CatalogEntry(
        name="meddinov3_vitb16_ct3m",
        description="MedDINOv3 ViT-B/16 (86 M parameters), DINOv3 pretrained further on CT-3M (3.87 M axial CT slices)",
        backbone="vitb16",
        architecture=replace(BACKBONES["vitb16"], norm_eps=1e-6),
        licence="Apache-2.0 (model card) and DINOv3 License (derived from DINOv3 weights)",
        licence_url=DINOV3_LICENCE_URL,
        homepage="https://github.com/ricklisz/MedDINOv3",
        repository="ricklisz123/MedDINOv3-ViTB-16-CT-3M",
        filename="model.pth",
        input_statistics=CT,
        note=(
            "The model card states Apache-2.0. The weights were made from Meta's DINOv3 weights, whose licence also "
            "binds derivatives, so read both before you redistribute. The authors advise against use on MRI."
        ),
        collections=CT_3M,
    ),
    _dinov3_lvd("vits16", "small", "21 M"),
    _dinov3_lvd("vitb16", "base", "86 M"),
    _dinov3_lvd("vitl16", "large", "300 M"),
    CatalogEntry(
        name="mit_b2_imagenet1k",
        description="MiT-B2 (24 M parameters), the encoder of SegFormer-B2, photographs of ImageNet-1k",
        backbone="mit_b2",
        architecture=MIT_BACKBONES["mit_b2"],
        licence="NVIDIA Source Code License for SegFormer",
        licence_url="https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
        homepage="https://github.com/NVlabs/SegFormer",
        repository="nvidia/mit-b2",
        filename="pytorch_model.bin",
        input_statistics=PHOTOGRAPHS,
        note="For SegFormerTrainer only. The licence permits research and evaluation, not commercial use.",
    ),
)

CATALOG: dict[str, CatalogEntry] = {entry.name: entry for entry in _ENTRIES}
"""Every named backbone. No checksums: the publishers state none, and what was fetched is recorded in the provenance."""
