"""An image as the network sees it, slice by slice: transposed, cropped, normalised and resampled as nnU-Net does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    ImageNormalization,
    NoNormalization,
    RGBTo01Normalization,
)
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.inference.images import CaseImage
from nnunetv2_meddino.inference.plans import find_normalization
from nnunetv2_meddino.inference.resampling import Resampling, resampling_of

ELEMENTWISE = (CTNormalization, NoNormalization, RGBTo01Normalization)
"""Schemes that treat each value alone and keep their order, so that slices can be normalised one by one."""


class NetworkSlices(Protocol):
    """The slices of one case, ready for the network."""

    shape: tuple[int, int, int]
    """``(slices, rows, columns)`` that the network sees."""
    properties: dict[str, Any]
    """As nnU-Net's preprocessor leaves them: sizes before and after cropping, the box, and those of the reader."""
    dicom: tuple[Path, ...]
    """The file of each slice of the image, where it was read from a DICOM series."""

    def read(self, start: int, stop: int) -> Tensor:
        """Return slices, ``(B, C, rows, columns)`` float32."""


class PreprocessedImage:
    """``NetworkSlices`` of an image; only what is asked for is computed."""

    def __init__(
        self, image: CaseImage, plans: PlansManager, configuration: ConfigurationManager, device: torch.device
    ) -> None:
        """Find the box of voxels that are not zero, and normalise where that needs the whole volume.

        Raises:
            DataError: The image has another number of channels than the network, or is smaller than one of its pixels.
        """
        self.device, self.dicom = device, image.dicom
        schemes = configuration.normalization_schemes
        if len(image.channels) != len(schemes):
            msg = f"The image has {len(image.channels)} channels, the network was trained on {len(schemes)}."
            raise DataError(msg)
        forward = plans.transpose_forward
        channels = [channel.transpose(forward) for channel in image.channels]
        spacing = [image.properties["spacing"][axis] for axis in forward]
        box = nonzero_box(channels)
        inside = tuple(slice(start, stop) for start, stop in box)
        shape = tuple(stop - start for start, stop in box)
        self.properties = {
            **image.properties,
            "shape_before_cropping": channels[0].shape,
            "bbox_used_for_cropping": box,
            "shape_after_cropping_and_before_resampling": shape,
        }
        target_spacing = [spacing[0], *configuration.spacing]
        target = [int(n) for n in compute_new_shape(shape, spacing, target_spacing)]
        if 0 in target:
            sizes = " x ".join(f"{s:g}" for s in spacing)
            raise DataError(f"Voxels of {sizes} mm are so small that the network would see none. Correct the spacing.")
        self.shape = (target[0], target[1], target[2])
        self._resampling = resampling_of(configuration.configuration, "data", shape, target, spacing, target_spacing)
        self._channels = [channel[inside] for channel in channels]
        mask = create_nonzero_mask(np.stack(channels))[inside] if any(configuration.use_mask_for_norm) else None
        self._normalizations = [
            find_normalization(scheme)(
                use_mask_for_norm=masked,
                intensityproperties=plans.foreground_intensity_properties_per_channel[str(i)],
            )
            for i, (scheme, masked) in enumerate(zip(schemes, configuration.use_mask_for_norm, strict=True))
        ]
        for i, normalization in enumerate(self._normalizations):
            if not _is_elementwise(normalization):
                outside = None if mask is None else np.where(mask, np.int8(0), np.int8(-1))
                self._channels[i] = normalization.run(self._channels[i].astype(np.float32), outside)
        self._limits = self._find_limits()

    def read(self, start: int, stop: int) -> Tensor:
        """Return slices, ``(B, C, rows, columns)`` float32 on the device."""
        values = np.stack(
            [self._normalized(i, channel[start:stop]) for i, channel in enumerate(self._channels)], axis=1
        )
        return self._resampling(torch.from_numpy(values).to(self.device), *self._limits)

    def _normalized(self, channel: int, values: NDArray[Any]) -> NDArray[np.float32]:
        normalization = self._normalizations[channel]
        return normalization.run(values.astype(np.float32)) if _is_elementwise(normalization) else values

    def _find_limits(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the limits that resampled slices are clipped to, each ``(C, 1 or rows, 1 or columns)``."""
        axes = {"volume": (0, 1, 2), "row": (0, 2), "column": (0, 1)}.get(self._resampling.clipped_to or "")
        if axes is None or self._resampling.source == self._resampling.target:
            return None, None
        low, high = (
            np.stack(
                [self._normalized(i, reduce(c, axis=axes, keepdims=True)[0]) for i, c in enumerate(self._channels)]
            )
            for reduce in (np.min, np.max)
        )
        return torch.from_numpy(low), torch.from_numpy(high)


class StoredSlices:
    """``NetworkSlices`` of a case that nnU-Net has preprocessed and stored."""

    dicom: tuple[Path, ...] = ()

    def __init__(
        self, data: Any, properties: dict[str, Any], device: torch.device, resampling: Resampling | None = None
    ) -> None:
        """Keep the case.

        Args:
            data: ``(C, slices, rows, columns)``, an array or what reads slices of one from a file.
            properties: Of the case.
            device: Of the network.
            resampling: Of each slice, where they are stored at another size than the network sees.
        """
        self._data, self.properties, self._device = data, properties, device
        _, depth, *stored = data.shape
        rows, columns = stored if resampling is None else resampling.target
        self.shape = (int(depth), int(rows), int(columns))
        self._resampling = resampling
        self._limits = self._find_limits()

    def read(self, start: int, stop: int) -> Tensor:
        """Return slices, ``(B, C, rows, columns)`` float32 on the device."""
        values = np.asarray(self._data[:, start:stop], np.float32)
        slices = torch.from_numpy(values.swapaxes(0, 1).copy()).to(self._device)
        return slices if self._resampling is None else self._resampling(slices, *self._limits)

    def _find_limits(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the range of the volume, each ``(C, 1, 1)``, where resampled slices are clipped to it."""
        if self._resampling is None or self._resampling.clipped_to != "volume":
            return None, None
        slices = [np.asarray(self._data[:, z], np.float32) for z in range(self.shape[0])]
        low, high = (np.stack([reduce(s, axis=(1, 2), keepdims=True) for s in slices]) for reduce in (np.min, np.max))
        return torch.from_numpy(low.min(axis=0)), torch.from_numpy(high.max(axis=0))


def nonzero_box(channels: Sequence[NDArray[Any]]) -> list[list[int]]:
    """Return the box ``[[start, stop], ...]`` of what is not zero in any channel ``(z, y, x)``; all where all is zero.

    It is nnU-Net's, which fills holes first: that leaves the box as it is.
    """
    depth, rows, columns = channels[0].shape
    filled = [np.zeros(depth, bool), np.zeros(rows, bool), np.zeros(columns, bool)]
    for z in range(depth):
        for channel in channels:
            inside = channel[z] != 0
            by_row = inside.any(axis=1)
            filled[0][z] |= by_row.any()
            filled[1] |= by_row
            filled[2] |= inside.any(axis=0)
    places = [np.flatnonzero(axis) for axis in filled]
    if len(places[0]) == 0:
        return [[0, depth], [0, rows], [0, columns]]
    return [[int(place[0]), int(place[-1]) + 1] for place in places]


def _is_elementwise(normalization: ImageNormalization) -> bool:
    return type(normalization) in ELEMENTWISE
