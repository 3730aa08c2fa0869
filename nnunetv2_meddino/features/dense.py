"""Dense features of a ViT on one image: the network's input, its patch tokens, their PCA and their similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nnunetv2_meddino.environment import MEDDINO_BACKBONE
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.features.image import ImageSlice, read_slice, stretched
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer, ViTConfig
from nnunetv2_meddino.weights.backbones import NO_WEIGHTS
from nnunetv2_meddino.weights.catalog import PHOTOGRAPHS
from nnunetv2_meddino.weights.load import backbone_name, load_into, read_weights

PATCH_PX = 16
MIN_SIZE_PX = 64
DEFAULT_SIZE_PX = 896
COMPONENTS = 3
DEFAULT_BACKBONE = "vitb16"
"""Architecture of random weights where nothing else says it."""

HU_RANGE = (-1000.0, 1000.0)
"""Below air there is only what scanners write outside their field of view; metal is far above bone."""

DISPLAY_PERCENTILES = (1, 99)
_RANDOM_SEED = 0


@dataclass(frozen=True)
class Encoder:
    """A ViT with the statistics of its input."""

    network: VisionTransformer
    """In evaluation mode, for three channels."""
    name: str
    """For titles."""
    mean: tuple[float, ...]
    """Of each channel, or one for all."""
    std: tuple[float, ...]
    """Of each channel, or one for all."""
    window_hu: tuple[float, float] | None
    """Range of the values before ``mean`` and ``std``; None: 0 to 1."""


def read_encoder(spec: Path | str, beside: Encoder | None = None) -> Encoder:
    """Read pretrained weights, or build a random network.

    Weights that state no input statistics get those of photographs.

    Args:
        spec: As for ``weights.load.read_weights``; ``none`` is random weights, always the same, of the architecture
            that ``MEDDINO_BACKBONE`` names, else that of ``beside``, else ViT-B/16.
        beside: The encoder that random weights are compared with; they then see the same input.

    Raises:
        WeightsError: The weights cannot be read.
        ConfigurationError: ``MEDDINO_BACKBONE`` is unknown.
    """
    spec = str(spec)
    if spec.lower() == NO_WEIGHTS:
        network = _random_network(beside.network.config if beside else BACKBONES[DEFAULT_BACKBONE]).eval()
        name = f"random weights ({backbone_name(network.config) or 'another architecture'})"
        like = beside or Encoder(network, "", PHOTOGRAPHS.mean, PHOTOGRAPHS.std, PHOTOGRAPHS.clip_hu)
        return replace(like, network=network, name=name)
    weights = read_weights(spec)
    network = VisionTransformer(weights.config).eval()
    load_into(network, weights)
    statistics = weights.provenance["input_statistics"] or asdict(PHOTOGRAPHS)
    mean, std = (tuple(float(value) for value in statistics[key]) for key in ("mean", "std"))
    low_high = statistics["clip_hu"]
    window = None if low_high is None else (float(low_high[0]), float(low_high[1]))
    return Encoder(network, str(weights.provenance["name"]), mean, std, window)


def dense_features(
    image: Path | str | ImageSlice, weights: Path | str | Encoder, *, size: int = DEFAULT_SIZE_PX
) -> NDArray[np.float32]:
    """Return the features of every patch of an image, as ``patch_features`` does from what has been read.

    Args:
        image: A file, of which the slice with the largest body area is taken; or what ``read_slice`` or
            ``slice_of_array`` returned.
        weights: As for ``read_encoder``; or what that returned, so that they are read once for many images.
        size: Longer side of the network's input in pixels, a multiple of 16.

    Returns:
        ``(h, w, D)``.

    Raises:
        ConfigurationError: ``size`` cannot be used, or the image is neither a file nor a slice.
        DataError: The image cannot be read, or holds one value only.
        WeightsError: The weights cannot be read.
    """
    if isinstance(image, (str, Path)):
        image = read_slice(image)
    elif not isinstance(image, ImageSlice):
        msg = f"The image is a {type(image).__name__}; give a file, or slice_of_array(array, spacing_mm)."
        raise ConfigurationError(msg)
    encoder = weights if isinstance(weights, Encoder) else read_encoder(weights)
    features, _ = patch_features(image, encoder, size)
    return features.astype(np.float32)


def scaled_intensities(image: ImageSlice, encoder: Encoder) -> tuple[NDArray[np.float32], str]:
    """Bring an image into the range of values that an encoder was trained on, before mean and standard deviation.

    HU are clipped to the window of the weights. Weights without one get values from 0 to 1: 8-bit colour divided by
    255, anything else stretched from its 0.5 to its 99.5 percentile, HU after clipping to ``HU_RANGE``. Images that
    are not in HU, for weights with a window, are brought to 0 to 1 in the same way and then to the window.

    Returns:
        ``(C, H, W)`` and a few words that say what was done.

    Raises:
        DataError: All pixels have the same value.
    """
    window = encoder.window_hu
    if window is not None and image.in_hu:
        return np.clip(image.pixels, *window), f"HU clipped to {window[0]:g} .. {window[1]:g}"
    values: NDArray[np.float32] | None
    if image.eight_bit and len(image.pixels) == 3:
        values, what = image.pixels / np.float32(255), "8-bit colour / 255"
    else:
        clipped = np.clip(image.pixels, *HU_RANGE) if image.in_hu else image.pixels
        values, what = stretched(clipped), "0.5 to 99.5 percentile stretched to 0 .. 1"
    if values is None:
        raise DataError(f"{image.name} holds one value only; there is nothing to see. Choose another slice.")
    if image.in_hu:
        return values, f"HU clipped to {HU_RANGE[0]:g} .. {HU_RANGE[1]:g}, {what}"
    if window is None:
        return values, what
    low, high = window
    return values * (high - low) + low, f"no HU: {what}, then to {low:g} .. {high:g}"


def network_size(image: ImageSlice, size: int) -> tuple[int, int]:
    """Return the size (rows, columns) in square pixels whose longer side is ``size``.

    Raises:
        ConfigurationError: ``size`` is not a multiple of 16, or too small for a picture of patches.
    """
    if size < MIN_SIZE_PX or size % PATCH_PX:
        raise ConfigurationError(f"--size {size} must be a multiple of {PATCH_PX} and at least {MIN_SIZE_PX}.")
    extent = np.multiply(image.pixels.shape[1:], image.spacing_mm)
    rows, columns = np.maximum(np.rint(size * extent / extent.max()).astype(int), 1)
    return int(rows), int(columns)


@torch.inference_mode()
def patch_features(image: ImageSlice, encoder: Encoder, size: int) -> tuple[NDArray[np.float64], str]:
    """Return the patch tokens of the last block after the final norm.

    Grey goes to all three channels. The image is resized with square pixels (``network_size``); what is missing to
    whole patches below and on the right repeats its border.

    Returns:
        ``(h, w, D)``, h and w counting patches that are partly filled, and what became of the intensities.
    """
    values, treatment = scaled_intensities(image, encoder)
    rows, columns = network_size(image, size)
    pixels = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
    pixels = F.interpolate(pixels, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
    pixels = pixels.expand(1, 3, rows, columns)
    mean, std = (torch.tensor(v, dtype=torch.float32).reshape(1, -1, 1, 1) for v in (encoder.mean, encoder.std))
    pixels = F.pad((pixels - mean) / std, (0, -columns % PATCH_PX, 0, -rows % PATCH_PX), mode="replicate")
    last = encoder.network.config.depth - 1
    (tokens,) = encoder.network.forward_tokens(pixels, [last])
    grid = encoder.network.grid_size(*pixels.shape[-2:])
    return tokens.patches[0].double().numpy().reshape(*grid, -1), treatment


def principal_components(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first three principal components of patch features.

    Each direction has the sign that makes its largest entry positive, so the same features give the same colours.

    Args:
        features: ``(h, w, D)`` of at least three patches and dimensions.

    Returns:
        Projections of the centred features, ``(h, w, 3)``, and the fractions of the variance they explain, ``(3,)``.
    """
    height, width, dimensions = features.shape
    centred = features.reshape(-1, dimensions)
    centred = centred - centred.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:COMPONENTS]
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(COMPONENTS), largest])[:, None]
    variance = np.square(singular)
    explained = variance[:COMPONENTS] / max(variance.sum(), np.finfo(float).tiny)
    return (centred @ directions.T).reshape(height, width, COMPONENTS), explained


def as_colours(components: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale each of three components ``(h, w, 3)`` from its 1st to its 99th percentile to 0 to 1: red, green, blue."""
    low, high = np.percentile(components, DISPLAY_PERCENTILES, axis=(0, 1))
    return np.clip((components - low) / np.maximum(high - low, np.finfo(float).tiny), 0, 1)


def pooled_colours(
    features: Sequence[NDArray[np.float64]],
    brightness: Sequence[NDArray[np.float64]],
    bodies: Sequence[NDArray[np.bool_]],
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the first three principal components of the bodies of all slices together as red, green and blue.

    What is no body is black; if fewer than four patches are, all count. Each component has the sign with which it grows
    with the brightness.

    Args:
        features: ``(h, w, D)`` of each slice.
        brightness: ``(h, w)``, mean of each patch.
        bodies: ``(h, w)``, which patches are body.

    Returns:
        Colours ``(h, w, 3)`` in [0, 1] of each slice, and the fractions of the variance that are explained, ``(3,)``.
    """
    if sum(np.count_nonzero(body) for body in bodies) <= COMPONENTS:
        bodies = [np.ones_like(body) for body in bodies]
    pooled = np.concatenate([grid[body] for grid, body in zip(features, bodies, strict=True)])
    bright = np.concatenate([mean[body] for mean, body in zip(brightness, bodies, strict=True)])
    components, explained = principal_components(pooled[:, None])
    rises = np.tensordot(bright - bright.mean(), components[:, 0], axes=1) >= 0
    coloured = as_colours(components * np.where(rises, 1, -1))[:, 0]
    pictures = []
    ends = np.cumsum([np.count_nonzero(body) for body in bodies])
    for body, own in zip(bodies, np.split(coloured, ends[:-1]), strict=True):
        picture = np.zeros((*body.shape, COMPONENTS))
        picture[body] = own
        pictures.append(picture)
    return pictures, explained


def patch_means(values: NDArray[Any], image: ImageSlice, size: int) -> NDArray[np.float64]:
    """Return the mean over each patch of the network's input, ``(h, w)``, of an array that covers a slice.

    Args:
        values: ``(H, W)`` of any resolution.
        image: The slice.
        size: As for ``patch_features``.
    """
    rows, columns = network_size(image, size)
    pixels = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))[None, None]
    pixels = F.interpolate(pixels, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
    pixels = F.pad(pixels, (0, -columns % PATCH_PX, 0, -rows % PATCH_PX), mode="replicate")
    return F.avg_pool2d(pixels, PATCH_PX)[0, 0].numpy()


def cosine_similarity(features: NDArray[np.float64], patch: tuple[int, int]) -> NDArray[np.float64]:
    """Return the cosine of the angle between every patch's features ``(h, w, D)`` and those of one: ``(h, w)``.

    Args:
        features: ``(h, w, D)``.
        patch: (row, column) of the one.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), np.finfo(float).tiny)
    return np.clip(unit @ unit[patch], -1, 1)


def patch_of_point(image: ImageSlice, point: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the patch (row, column) that holds the centre of a pixel (y, x) of the slice.

    Raises:
        DataError: The pixel lies outside the slice.
    """
    shape = image.pixels.shape[1:]
    if not all(0 <= p < n for p, n in zip(point, shape, strict=True)):
        msg = (
            f"--point {point[0]} {point[1]} lies outside {image.name}, which has rows 0 to {shape[0] - 1} and columns "
            f"0 to {shape[1] - 1}."
        )
        raise DataError(msg)
    row, column = (
        int((p + 0.5) * n_px / n) // PATCH_PX
        for p, n, n_px in zip(point, shape, network_size(image, size), strict=True)
    )
    return row, column


def _random_network(default: ViTConfig) -> VisionTransformer:
    chosen = MEDDINO_BACKBONE.get()
    if chosen is not None and chosen not in BACKBONES:
        raise ConfigurationError(f"MEDDINO_BACKBONE is {chosen!r}; it must be one of {', '.join(BACKBONES)}, or unset.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        return VisionTransformer(BACKBONES[chosen] if chosen else default)
