"""Views of CT slices for self-supervised training: crops, intensities and masks, batched on the accelerator."""

from pretraining.views.config import IntensityConfig, MaskConfig, ViewConfig
from pretraining.views.crops import ViewParameters
from pretraining.views.masks import PatchMasks
from pretraining.views.pipeline import Views, make_views

__all__ = [
    "IntensityConfig",
    "MaskConfig",
    "PatchMasks",
    "ViewConfig",
    "ViewParameters",
    "Views",
    "make_views",
]
