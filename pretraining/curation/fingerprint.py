"""Content of volumes: exact hashes, and fingerprints that find one scan again in another export of it.

A fingerprint describes axial slices, evenly spread. In each slice the body is found (largest piece denser than half of
water, without the table) and the window around it, sized by its moments and so not by the picture's edges, is averaged
over a 32 x 32 grid of grey values that spread out soft tissue. Of their cosine transform the 10 x 10 lowest frequencies
are kept, weighted by frequency, without the share that every body has (a filled ellipse), scaled to length 1.
``likeness`` compares fingerprints.

Nothing but ``spacing_mm`` depends on the spacing in the header, which may be wrong: the hash is that of the voxels, the
number of slices decides which are described, and the body is looked for in blocks of a size that follows from itself.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.fft import dctn

from pretraining.corpus.slice_statistics import BODY_ABOVE_HU
from pretraining.curation.volume import Volume
from pretraining.modality import Modality

DESCRIBED = 96
"""At least as many slices are described, and at most twice as many less one; all of a volume that has fewer."""

_PIECE = 0.1
"""Pieces of the body smaller than this share of the largest do not count: limbs do, bits of a table do not."""

_PICTURE_BLOCKS = 64
"""Blocks along each side of the picture in which the body is looked for first."""

_BODY_BLOCKS = 28
"""Blocks along half a body in which it is looked for then: blocks of about 4 mm in a trunk."""

_PASSES = 3
"""Times that the body is looked for at most; the size of the blocks rarely changes after the second time."""

_SMALLEST_BODY = 16
"""Blocks of the body."""

SCALE = 127
"""Length of a descriptor."""

FREQUENCIES = 10
LENGTH = FREQUENCIES**2 - 1  # without the constant
_GRID = 32
_MARGIN = 1.1  # half width of the window in half axes of the body

_TONE_HU = (-1000, -200, -100, 0, 100, 300, 1000)
_TONE = (0.0, 0.25, 0.45, 0.6, 0.8, 0.95, 1.0)
"""Hounsfield units -> grey: half of the range for what lies between fat and muscle."""

_SIGNAL = 0.15
"""MR and X-ray: the body is brighter than this share of the brightest percent."""

_HEADER = struct.Struct("<2sBH3fH")
_MAGIC = b"F2"

Window = tuple[float, float, float, float]
"""Centre and half axes of a body along (y, x), in pixels."""


def exact_hash(voxels: NDArray[np.int16]) -> str:
    """Return the SHA-256 (hexadecimal) of shape and voxels, int16 ``(z, y, x)``, canonical.

    The spacing does not count: a header may state another one for the same scan.
    """
    digest = hashlib.sha256(struct.pack("<3q", *voxels.shape))
    digest.update(np.ascontiguousarray(voxels, "<i2").data)
    return digest.hexdigest()


def is_current(content: bytes) -> bool:
    """Tell whether a fingerprint can be compared; those of earlier versions rest on the spacing in the header."""
    return content[: len(_MAGIC)] == _MAGIC


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """A volume's content, about 100 bytes for every described slice."""

    modality: Modality
    """Scans of different modalities are never alike."""
    stride: int
    """Every so many slices one is described."""
    spacing_mm: tuple[float, float, float]
    """Voxel size along ``(z, y, x)`` by the header."""
    sizes_px: NDArray[np.float32]
    """float32 ``(N, 2)``: half axes of the body along (y, x) in pixels; 0 where there is none."""
    slices: NDArray[np.int8]
    """int8 ``(N, 99)``: descriptors of length 127; 0 where there is no body."""

    @property
    def step_mm(self) -> float:
        """Return the distance of the slices described, by the header."""
        return self.stride * self.spacing_mm[0]

    def to_bytes(self) -> bytes:
        """Return what ``from_bytes`` takes."""
        modality = list(Modality).index(self.modality)
        header = _HEADER.pack(_MAGIC, modality, self.stride, *self.spacing_mm, len(self.slices))
        return header + self.sizes_px.astype("<f4").tobytes() + self.slices.tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> Fingerprint:
        """Restore what ``to_bytes`` made.

        Raises:
            ValueError: It is something else.
        """
        if len(content) < _HEADER.size or not is_current(content):
            raise ValueError("these bytes are not a fingerprint")
        _, modality, stride, *spacing, count = _HEADER.unpack_from(content)
        end = _HEADER.size + 8 * count
        if len(content) != end + LENGTH * count:
            raise ValueError(f"a fingerprint of {count} slices does not have {len(content)} bytes")
        sizes = np.frombuffer(content[_HEADER.size : end], "<f4").astype(np.float32).reshape(count, 2)
        slices = np.frombuffer(content[end:], np.int8).reshape(count, LENGTH)
        return cls(list(Modality)[modality], stride, (spacing[0], spacing[1], spacing[2]), sizes, slices)


def fingerprint(volume: Volume) -> Fingerprint:
    """Describe a canonical volume."""
    stride = max(1, len(volume.voxels) // DESCRIBED)
    sections = volume.voxels[::stride]
    sizes = np.zeros((len(sections), 2), np.float32)
    slices = np.zeros((len(sections), LENGTH), np.int8)
    ct = volume.modality == Modality.CT
    for i, section in enumerate(sections):
        top = 0.0 if ct else float(np.percentile(section, 99))
        window = _body(section, BODY_ABOVE_HU if ct else _SIGNAL * top)
        if window is None:
            continue
        grey = _tone_table()[section.view(np.uint16)] if ct else np.clip(section / np.float32(max(top, 1)), 0, 1)
        sizes[i] = window[2:]
        slices[i] = np.rint(_describe(grey, window) * SCALE)
    return Fingerprint(volume.modality, stride, volume.spacing_mm, sizes, slices)


@cache
def _tone_table() -> NDArray[np.float32]:
    """Return the grey value of every int16, indexed by its bits."""
    return np.interp(np.arange(65536, dtype=np.uint16).view(np.int16), _TONE_HU, _TONE).astype(np.float32)


def _body(section: NDArray[np.int16], threshold: float) -> Window | None:
    """Return the window of a slice's body; None for an empty slice.

    It is looked for in blocks of pixels: first of a size that follows from the picture, then from the body itself.
    """
    factors = [max(1, round(size / _PICTURE_BLOCKS)) for size in section.shape]
    window = None
    for _ in range(_PASSES):
        window = _body_in_blocks(section, factors[0], factors[1], threshold)
        if window is None:
            return None
        last, factors = factors, [max(1, round(half / _BODY_BLOCKS)) for half in window[2:]]
        if factors == last:
            break
    return window


def _body_in_blocks(section: NDArray[np.int16], fy: int, fx: int, threshold: float) -> Window | None:
    """Return the window of the body that is found in blocks of ``(fy, fx)`` pixels."""
    rows, columns = section.shape[0] // fy, section.shape[1] // fx
    blocks = section[: rows * fy, : columns * fx].clip(-1000, 400 if threshold < 0 else None)
    coarse = blocks.reshape(rows, fy, columns, fx).mean((1, 3), dtype=np.float32)
    dense = ndimage.binary_opening(np.pad(coarse > threshold, 1))  # parts the table from the body
    labels, count = ndimage.label(dense)
    if not count:
        return None
    areas = np.bincount(labels.ravel())[1:]
    large = 1 + np.flatnonzero(areas >= _PIECE * areas.max())
    inside = ndimage.binary_fill_holes(np.isin(labels, large))
    # what touches the body counts by its density, so that the estimate does not depend on where blocks begin
    soft = np.pad(((coarse - 1.4 * threshold) / (-0.8 * threshold)), 1) if threshold < 0 else inside
    weight = np.where(ndimage.binary_erosion(inside), 1, ndimage.binary_dilation(inside) * np.clip(soft, 0, 1))
    total = float(weight.sum())
    if total < _SMALLEST_BODY:
        return None
    window = []
    for factor, profile in ((fy, weight.sum(1)), (fx, weight.sum(0))):
        at = np.arange(len(profile)) - 0.5  # centres, without the padding, in blocks
        centre = float(profile @ at) / total
        variance = float(profile @ (at - centre) ** 2) / total + 1 / 12  # of the blocks themselves
        window.append((centre * factor, 2 * np.sqrt(variance) * factor))  # an ellipse's half axis is 2 deviations
    (centre_y, half_y), (centre_x, half_x) = window
    return centre_y, centre_x, half_y, half_x


def _describe(grey: NDArray[np.float32], window: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Return the descriptor ``(99,)`` of a slice of grey values ``(y, x)``, of length 1."""
    weights_y = _averaging(grey.shape[0], window[0], window[2])
    weights_x = _averaging(grey.shape[1], window[1], window[3])
    raw = _low_frequencies((weights_y @ grey @ weights_x.T).astype(np.float64))
    common = _common()
    own = raw - (raw @ common) * common
    return own / max(float(np.linalg.norm(own)), 1e-9)


def _averaging(size: int, centre: float, half: float) -> NDArray[np.float32]:
    """Return ``(32, size)`` weights that average pixels over the cells of the window; outside the picture is 0."""
    edges = centre + _MARGIN * half * np.linspace(-1, 1, _GRID + 1)
    pixels = np.arange(size)
    covered = np.minimum(edges[1:, np.newaxis], pixels + 1) - np.maximum(edges[:-1, np.newaxis], pixels)
    return (covered.clip(0) / (edges[1] - edges[0])).astype(np.float32)


def _low_frequencies(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(99,)`` coefficients of a 32 x 32 picture, weighted by frequency (as natural pictures fall off)."""
    index = np.arange(FREQUENCIES)
    weights = np.hypot(index[:, np.newaxis], index)
    return (dctn(cells, norm="ortho")[:FREQUENCIES, :FREQUENCIES] * weights).ravel()[1:]


@cache
def _common() -> NDArray[np.float64]:
    """Return what every body has: the coefficients of a filled ellipse, of length 1."""
    fine = 8
    at = _MARGIN * (2 * (np.arange(_GRID * fine) + 0.5) / (_GRID * fine) - 1)
    disc = (np.hypot(at[:, np.newaxis], at) < 1).reshape(_GRID, fine, _GRID, fine).mean((1, 3))
    coefficients = _low_frequencies(disc)
    return coefficients / np.linalg.norm(coefficients)
