"""Slices from one grid to another as nnU-Net resamples volumes, on any device.

nnU-Net resamples whole volumes with ``skimage.transform.resize`` (spline interpolation of scipy, edge values beyond the
border, clipped to the range of the input) or, in some plans, with torch. A 2D configuration never changes the distance
of slices, so both do the same to each slice, except that the range and the axis of nearest-neighbour interpolation are
those of the volume. Spline interpolation is linear and separable: on one axis it is a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from scipy import ndimage
from torch import Tensor

from nnunetv2_meddino.errors import ConfigurationError

Size = tuple[int, int]
"""Rows and columns."""

Scope = Literal["slice", "row", "column", "volume"]
"""What the values of a resampled slice are clipped to the range of: the slice before, or the whole volume, or what the
volume holds in the same row or column."""

SKIMAGE = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"


@dataclass(frozen=True)
class Resampling:
    """From one slice size to another."""

    source: Size
    target: Size
    order: int
    """Of the splines: 0 is nearest neighbour, 1 linear, 3 cubic."""
    coarse_axis: int | None = None
    """Axis of the slice (0: rows, 1: columns) with so large voxels that it is resampled by itself, in a second step."""
    coarse_order: int = 0
    """Order of the splines on that axis."""
    clipped_to: Scope | None = None
    """None where interpolation cannot leave the range."""

    def __call__(self, slices: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Resample.

        Args:
            slices: ``(..., rows, columns)`` in ``source`` size, float32.
            low: Smallest value of ``clipped_to``, to be broadcast against ``slices``; found here for ``slice``.
            high: Largest value of it.

        Returns:
            ``(..., rows, columns)`` in ``target`` size.
        """
        if self.source == self.target:
            return slices
        fine = tuple(n if axis == self.coarse_axis else m for axis, (n, m) in self._axes())
        resampled = self._interpolated(slices, (fine[0], fine[1]))
        if self.clipped_to == "slice":
            low, high = slices.amin((-2, -1), keepdim=True), slices.amax((-2, -1), keepdim=True)
        if self.clipped_to is not None:
            assert low is not None and high is not None
            resampled = resampled.clamp(low.to(resampled.device), high.to(resampled.device))
        if self.coarse_axis is not None:
            n, m = self.source[self.coarse_axis], self.target[self.coarse_axis]
            resampled = _along(resampled, self.coarse_axis, n, m, self.coarse_order)
        return resampled

    def _axes(self) -> list[tuple[int, tuple[int, int]]]:
        return list(enumerate(zip(self.source, self.target, strict=True)))

    def _interpolated(self, slices: Tensor, size: Size) -> Tensor:
        if self.order == 1:
            flat = slices.reshape(-1, 1, *slices.shape[-2:]) if slices.ndim != 4 else slices
            return F.interpolate(flat, size, mode="bilinear", align_corners=False).reshape(*slices.shape[:-2], *size)
        for axis in (1, 0):
            slices = _along(slices, axis, self.source[axis], size[axis], self.order)
        return slices


def resampling_of(
    configuration: Mapping[str, Any],
    what: Literal["data", "probabilities"],
    source: Sequence[int],
    target: Sequence[int],
    source_spacing: Sequence[float],
    target_spacing: Sequence[float],
) -> Resampling:
    """Return what nnU-Net's resampling of a volume does to its slices.

    Args:
        configuration: Of the plans, where ``resampling_fn_data`` and ``resampling_fn_probabilities`` name a function
            and its arguments.
        what: Which of the two.
        source: ``(z, y, x)`` voxels before.
        target: ``(z, y, x)`` voxels after, as many slices.
        source_spacing: ``(z, y, x)``, which decides whether an axis is resampled by itself.
        target_spacing: ``(z, y, x)``.

    Raises:
        ConfigurationError: As ``check_resampling``.
    """
    name, arguments = check_resampling(configuration, what)
    separate, axis = determine_do_sep_z_and_axis(
        arguments.get("force_separate_z", False if name == SKIMAGE else None),
        source_spacing,
        target_spacing,
        arguments.get("separate_z_anisotropy_threshold", ANISO_THRESHOLD),
    )
    coarse = int(axis) - 1 if separate and axis else None
    sizes = (int(source[1]), int(source[2])), (int(target[1]), int(target[2]))
    if name == TORCH:
        return Resampling(*sizes, order=1, coarse_axis=coarse)
    order = int(arguments.get("order", 3))
    scopes: dict[int | None, Scope] = {None: "slice" if separate else "volume", 0: "row", 1: "column"}
    return Resampling(
        *sizes,
        order=order,
        coarse_axis=coarse,
        coarse_order=int(arguments.get("order_z", 0)),
        clipped_to=scopes[coarse] if order > 1 else None,
    )


def check_resampling(
    configuration: Mapping[str, Any], what: Literal["data", "probabilities"]
) -> tuple[str, Mapping[str, Any]]:
    """Return the name of the function that resamples in these plans, and its arguments.

    Raises:
        ConfigurationError: It is none of those that ``Resampling`` can do slice by slice.
    """
    name, arguments = configuration[f"resampling_fn_{what}"], configuration[f"resampling_fn_{what}_kwargs"]
    modes = arguments.get("mode", "linear"), arguments.get("aniso_axis_mode", "nearest-exact")
    if name not in (SKIMAGE, TORCH) or modes != ("linear", "nearest-exact"):
        how = f" ({', '.join(modes)})" if name == TORCH else ""
        msg = f"The plans resample {what} with {name}{how}, which cannot be done slice by slice. Predict with --stock."
        raise ConfigurationError(msg)
    return name, arguments


def _along(slices: Tensor, axis: int, n: int, m: int, order: int) -> Tensor:
    """Interpolate along rows (axis 0) or columns (1)."""
    if n == m:
        return slices
    if order == 0:
        return slices.index_select(axis - 2, _nearest(n, m).to(slices.device))
    matrix = _spline(n, m, order).to(slices.device)
    return matrix @ slices if axis == 0 else slices @ matrix.T


@lru_cache(maxsize=16)
def _spline(n: int, m: int, order: int) -> Tensor:
    """Return the matrix ``(m, n)`` of scipy's interpolation of ``n`` values at the centres of ``m`` equal parts."""
    columns = [ndimage.zoom(unit, m / n, order=order, mode="nearest", grid_mode=True) for unit in np.eye(n)]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


@lru_cache(maxsize=16)
def _nearest(n: int, m: int) -> Tensor:
    """Return for each of ``m`` equal parts which of ``n`` values is nearest to its centre, the upper one of two."""
    centres = n / m * (np.arange(m) + 0.5) - 0.5
    return torch.from_numpy(ndimage.map_coordinates(np.arange(n), centres[np.newaxis], order=0, mode="nearest"))
