"""What views look like: sizes, crops, augmentation, intensities, masks. Every default names its source."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.weights.catalog import CT_CLIP_HU, CT_MEAN_HU, CT_STD_HU

INTENSITY_RULES = ("ct", "window", "zscore", "percentile")


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigurationError(f"views: {what}")


def _is_range(pair: tuple[float, float], low: float, high: float) -> bool:
    return len(pair) == 2 and low <= pair[0] <= pair[1] <= high


@dataclass(frozen=True)
class IntensityConfig:
    """How stored values become network inputs."""

    rule: str = "ct"
    """How values are clipped and normalised:

    - ``ct``: clip to ``clip_hu``, subtract ``mean_hu``, divide by ``std_hu`` + 1e-8.
    - ``window``: clip to one of ``windows_hu``, drawn for each slice, and scale to [-1, 1].
    - ``zscore``: mean 0 and standard deviation 1 over the slice; nothing is clipped.
    - ``percentile`` (MR): clip to ``percentiles`` of the slice's body (all pixels above the slice's lowest value), then
      mean 0 and standard deviation 1 over the body.
    """
    clip_hu: tuple[float, float] = CT_CLIP_HU
    """Lowest and highest value in HU (rule ``ct``); this and the next two as in MedDINOv3's notebook."""
    mean_hu: float = CT_MEAN_HU
    """Mean in HU (rule ``ct``)."""
    std_hu: float = CT_STD_HU
    """Standard deviation in HU (rule ``ct``)."""
    windows_hu: tuple[tuple[float, float], ...] = ((40.0, 400.0),)
    """Centre and width of each window in HU (rule ``window``); by default the usual soft-tissue window alone."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Percentiles of the body to clip to (rule ``percentile``), as nnU-Net clips CT to those of the foreground."""

    def __post_init__(self) -> None:
        _check(self.rule in INTENSITY_RULES, f"intensity rule {self.rule!r} is none of {', '.join(INTENSITY_RULES)}")
        _check(self.clip_hu[0] < self.clip_hu[1], f"clip_hu {self.clip_hu} must rise")
        _check(self.std_hu > 0, f"std_hu {self.std_hu} must be above 0")
        _check(
            bool(self.windows_hu) and all(len(window) == 2 and window[1] > 0 for window in self.windows_hu),
            f"windows_hu {self.windows_hu} must be pairs of a centre and a width above 0",
        )
        low, high = self.percentiles
        _check(0 <= low < high <= 100, f"percentiles {self.percentiles} must rise within 0 to 100")


@dataclass(frozen=True)
class MaskConfig:
    """Which patches of the global crops are hidden from the student (iBOT)."""

    patch_size: int = 16
    """Side of a patch in pixels; 16 is that of the ViT."""
    probability: float = 0.5
    """Share of the global crops that are masked (all DINOv3 configurations)."""
    ratio: tuple[float, float] = (0.1, 0.5)
    """Smallest and largest share of masked patches in a masked crop; crops are spread evenly over it (DINOv3)."""
    min_patches: int = 4
    """Smallest block of masked patches, in patches (BEiT and DINOv3)."""
    min_aspect: float = 0.3
    """Smallest height by width of a block; the largest is its inverse (BEiT and DINOv3)."""

    def __post_init__(self) -> None:
        _check(self.patch_size >= 1, f"patch_size {self.patch_size} must be at least 1")
        _check(0 <= self.probability <= 1, f"mask probability {self.probability} must be within 0 to 1")
        _check(_is_range(self.ratio, 0, 1), f"mask ratio {self.ratio} must rise within 0 to 1")
        _check(self.min_patches >= 1, f"min_patches {self.min_patches} must be at least 1")
        _check(0 < self.min_aspect <= 1, f"min_aspect {self.min_aspect} must be above 0, at most 1")


@dataclass(frozen=True)
class ViewConfig:
    """Two global crops and several local crops of each slice, and what is done to them.

    "DINOv3" below means the configurations of its 7B training, which MedDINOv3 followed. Colour operations of DINOv3
    (saturation, hue, grayscale) do nothing to a grey image and are left out.
    """

    global_size: int = 256
    """Side of a global crop in pixels (DINOv3; MedDINOv3's text implies it for CT)."""
    global_scale: tuple[float, float] = (0.32, 1.0)
    """Smallest and largest area of a global crop as a share of the slice (DINOv3)."""
    local_size: int = 112
    """Side of a local crop in pixels (DINOv3, whose third stage also has 168: the half patch is cut off)."""
    local_scale: tuple[float, float] = (0.05, 0.32)
    """Smallest and largest area of a local crop as a share of the slice (DINOv3)."""
    num_local: int = 8
    """Local crops of each slice (DINOv3)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width by height of a crop's region (torchvision's default, as DINOv3)."""
    gram_size: int | None = None
    """Side of the Gram teacher's crops in pixels; none: no such crops (DINOv3 stage 2: 512).

    They show the regions of the global crops without augmentation.
    """
    flip_probability: float = 0.0
    """Probability of mirroring left and right; 0 as in DINOv3's 7B training, and because organs have sides."""
    jitter_probability: float = 0.8
    """Probability of changing a crop's brightness and contrast (DINOv3)."""
    brightness: float = 0.4
    """Brightness is multiplied by 1 - this to 1 + this (DINOv3)."""
    contrast: float = 0.4
    """Contrast is multiplied by 1 - this to 1 + this (DINOv3)."""
    blur_kernel: int = 9
    """Side of the Gaussian blur's kernel in pixels (DINOv3)."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur in pixels (DINOv3)."""
    global_1_blur_probability: float = 0.0
    """Probability of blurring the first global crop. DINOv3's configuration says 1.0, but its code blurs with one minus
    that: the three defaults are what its training did (measured: 0 of 400 crops)."""
    global_2_blur_probability: float = 0.9
    """Probability of blurring the second global crop (DINOv3's configuration says 0.1, see above)."""
    local_blur_probability: float = 0.5
    """Probability of blurring a local crop (DINOv3)."""
    global_2_solarise_probability: float = 0.0
    """Probability of solarising the second global crop; off: DINOv3 has 0.2, but on CT that swaps bone and air."""
    solarise_threshold: float = 0.5
    """Values from here on, on the scale [0, 1], are inverted by solarising (DINOv3: 128 of 255)."""
    intensity: IntensityConfig = field(default_factory=IntensityConfig)
    """How stored values become network inputs."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    """Which patches are hidden from the student."""

    def __post_init__(self) -> None:
        patch = self.masks.patch_size
        for name, size in {"global_size": self.global_size, "gram_size": self.gram_size}.items():
            _check(size is None or (size > 0 and size % patch == 0), f"{name} {size} must be a multiple of {patch}")
        _check(self.local_size >= patch, f"local_size {self.local_size} must hold a patch of {patch}")
        for name in ("global_scale", "local_scale"):
            scale = getattr(self, name)
            _check(_is_range(scale, 0, 1) and scale[0] > 0, f"{name} {scale} must rise, above 0 and at most 1")
        _check(_is_range(self.ratio, 0, 100) and self.ratio[0] > 0, f"ratio {self.ratio} must rise, above 0")
        _check(self.num_local >= 1, f"num_local {self.num_local} must be at least 1")
        for name in (f.name for f in self.__dataclass_fields__.values() if f.name.endswith("probability")):
            _check(0 <= getattr(self, name) <= 1, f"{name} {getattr(self, name)} must be within 0 to 1")
        for name in ("brightness", "contrast"):
            _check(0 <= getattr(self, name) <= 1, f"{name} {getattr(self, name)} must be within 0 to 1")
        _check(0 <= self.solarise_threshold <= 1, f"solarise_threshold {self.solarise_threshold} must be within 0 to 1")
        _check(self.blur_kernel % 2 == 1, f"blur_kernel {self.blur_kernel} must be odd")
        smallest = min(self.global_size, self.local_size)
        _check(0 < self.blur_kernel < 2 * smallest, f"blur_kernel {self.blur_kernel} is too wide for {smallest} pixels")
        _check(_is_range(self.blur_sigma, 1e-3, 1e3), f"blur_sigma {self.blur_sigma} must rise, at least 0.001")

    @property
    def num_views(self) -> int:
        """Global and local crops of a slice; views 0 and 1 are global."""
        return 2 + self.num_local

    @property
    def blur_probabilities(self) -> tuple[float, ...]:
        """Of every view."""
        return (
            self.global_1_blur_probability,
            self.global_2_blur_probability,
            *[self.local_blur_probability] * self.num_local,
        )
