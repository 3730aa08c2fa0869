"""Compiled passes over the label volumes: overlap and boxes in the first, all surfaces of all classes in the second.

Volumes arrive flat, one byte per voxel, x fastest. Words are unsigned throughout: numba turns a mixture of uint64 and
int64 into floats. Indices of the innermost loops are unsigned too: a signed one may count from the end, and the test
for that keeps the loop from being vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.evaluation.surface.jit import jit, trailing_zeros

U = np.uint64

CHUNK = 64
"""Voxels, or corners, that are compared at once."""

LOW_BYTE = U(0xFF)
ONES = U(0x0101010101010101)
LOW_SEVEN = U(0x7F7F7F7F7F7F7F7F)
HIGH_BITS = U(0x8080808080808080)
GATHER = U(0x0102040810204080)
"""Times this, the lowest bits of the bytes of a word stand in order in its top byte."""


@jit
def scan_volumes(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    shape: tuple[int, int, int],
    ignore: int,
    confusion: NDArray[np.int64],
    boxes: NDArray[np.int64],
    occupied: NDArray[np.uint8],
) -> None:
    """Count label pairs, and find each label's box and the rows with any label but 0.

    Args:
        reference: Flat volume.
        prediction: Flat volume.
        shape: ``(z, y, x)``.
        ignore: Reference label whose voxels hold no prediction, or -1.
        confusion: ``(256, 256)``, zeros; receives the counts.
        boxes: ``(256, 6)`` of z, y, x minima and maxima over both volumes, at first larger and smaller than any.
        occupied: ``(z * y,)`` zeros; receives 1 for rows with a label in either volume.
    """
    nz, ny, nx = shape
    for z in range(nz):
        for y in range(ny):
            row = (z * ny + y) * nx
            start = 0
            while start < nx:
                stop = min(start + CHUNK, nx)
                a, b = reference[row + start], prediction[row + start]
                different = np.uint8(0)
                for i in range(U(row + start), U(row + stop)):
                    different |= np.uint8((reference[i] ^ a) | (prediction[i] ^ b))
                x = start
                while x < stop:  # one run per pair of labels
                    first = x
                    if different == 0:
                        x = stop
                    else:
                        a, b = reference[U(row + x)], prediction[U(row + x)]
                        while x < stop and reference[U(row + x)] == a and prediction[U(row + x)] == b:
                            x += 1
                    confusion[a, b] += x - first
                    if a == ignore:
                        b = np.uint8(0)
                    if a | b:
                        occupied[z * ny + y] = 1
                        for label in (a, b):
                            boxes[label, 0], boxes[label, 3] = min(boxes[label, 0], z), max(boxes[label, 3], z)
                            boxes[label, 1], boxes[label, 4] = min(boxes[label, 1], y), max(boxes[label, 4], y)
                            boxes[label, 2], boxes[label, 5] = min(boxes[label, 2], first), max(boxes[label, 5], x - 1)
                start = stop


@jit
def _load_slice(
    volume: NDArray[np.uint8],
    z: int,
    shape: tuple[int, int, int],
    occupied: NDArray[np.uint8],
    slices: NDArray[np.uint8],
    slot: int,
    pitch: int,
    filled: NDArray[np.uint8],
) -> None:
    """Copy slice ``z`` of a volume into a slot of padded rows; rows without labels, and slices outside, are zeros."""
    nz, ny, nx = shape
    for y in range(ny):
        target = (slot * (ny + 2) + y + 1) * pitch + CHUNK
        if 0 <= z < nz and occupied[z * ny + y]:
            source = (z * ny + y) * nx
            for x in range(U(nx)):
                slices[U(target) + x] = volume[U(source) + x]
            filled[slot * ny + y] = 1
        elif filled[slot * ny + y]:
            for x in range(U(nx)):
                slices[U(target) + x] = 0
            filled[slot * ny + y] = 0


@jit
def _differences(words: Any, i: Any, lower: Any, upper: Any, pitch: Any) -> Any:
    """Return a word with a nonzero byte for each of 8 corners whose neighbourhood holds more than one label.

    ``lower`` and ``upper`` are the word offsets of row y - 1 in slices z - 1 and z; row y follows at ``pitch``.
    """
    a, b, c, d = words[lower + i], words[lower + pitch + i], words[upper + i], words[upper + pitch + i]
    across = (a ^ b) | (a ^ c) | (a ^ d)
    i -= U(1)
    e, f, g, h = words[lower + i], words[lower + pitch + i], words[upper + i], words[upper + pitch + i]
    before = (e ^ f) | (e ^ g) | (e ^ h)
    # the voxel left of a byte is the byte below it, and for the lowest the top byte of the word before
    return across | (across << U(8)) | (before >> U(56)) | (a ^ ((a << U(8)) | (e >> U(56))))


@jit
def _row_pair(words: Any, i: Any, shift: Any) -> Any:
    """Return the voxels left and right of a corner as the two low bytes."""
    word = words[i]
    left = ((word << U(8)) | (words[i - U(1)] >> U(56))) >> shift & LOW_BYTE
    return left | (word >> shift & LOW_BYTE) << U(8)


@jit
def _neighbourhood(words: Any, i: Any, lower: Any, upper: Any, pitch: Any, shift: Any) -> Any:
    """Return the labels of the 2x2x2 voxels around a corner, byte ``4a + 2b + c`` for offset ``(a, b, c)``."""
    return (
        _row_pair(words, lower + i, shift)
        | _row_pair(words, lower + pitch + i, shift) << U(16)
        | _row_pair(words, upper + i, shift) << U(32)
        | _row_pair(words, upper + pitch + i, shift) << U(48)
    )


@jit
def _surface_of(labels: Any, members: NDArray[np.uint64]) -> Any:
    """Find the classes that a neighbourhood is a surface of.

    Returns:
        Bits of these classes; of them, the bits of those that hold the second label; the code of the second label; and
        whether that is all to know, as it is where only two labels meet.
    """
    first = labels & LOW_BYTE
    other = labels ^ (first * ONES)
    if other == U(0):
        return U(0), U(0), U(0), True
    which = (((other & LOW_SEVEN) + LOW_SEVEN) | other) & HIGH_BITS
    second = labels >> (trailing_zeros(other) & U(56)) & LOW_BYTE
    if other == (which >> U(7)) * (first ^ second):
        inside = members[second]
        return members[first] ^ inside, inside, ((which >> U(7)) * GATHER) >> U(56), True
    union, common = U(0), ~U(0)
    for j in range(8):
        member = members[labels >> U(8 * j) & LOW_BYTE]
        union |= member
        common &= member
    return union & ~common, U(0), U(0), False


@jit
def _code_of(labels: Any, members: NDArray[np.uint64], c: Any) -> Any:
    """Return the code of class ``c`` in a neighbourhood."""
    code = U(0)
    for j in range(8):
        code |= (members[labels >> U(8 * j) & LOW_BYTE] >> c & U(1)) << U(j)
    return code


@jit
def has_label(labels: Any, label: int) -> bool:
    """Say whether one of the eight bytes of a word is ``label``; none is -1."""
    if label < 0:
        return False
    other = labels ^ (U(label) * ONES)
    return ((other - ONES) & ~other & HIGH_BITS) != U(0)


@jit
def draw_surfaces(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    shape: tuple[int, int, int],
    planar: bool,
    ignore: int,
    occupied: NDArray[np.uint8],
    box: NDArray[np.int64],
    members: NDArray[np.uint64],
    grids: NDArray[np.int64],
    inner: NDArray[np.uint8],
    slices: NDArray[np.uint8],
    words: NDArray[np.uint64],
    filled: NDArray[np.uint8],
    maps: NDArray[np.uint64],
    coincident: NDArray[np.int64],
) -> None:
    """Draw the surface corners and the boundary voxels of all classes into bit maps.

    Args:
        reference: Flat volume.
        prediction: Flat volume, 0 where the reference is ``ignore``.
        shape: ``(z, y, x)``.
        planar: The volume is one slice, its own neighbour above and below.
        ignore: Label that no surface may touch to be counted in ``coincident``, or -1.
        occupied: ``(z * y,)`` from ``scan_volumes``.
        box: Z, y, x minima and maxima of all classes' voxels.
        members: ``(256,)`` bit ``c`` set where the label belongs to class ``c``.
        grids: ``(classes, 8)`` of each class: z, y, x of its map's first corner, its rows per layer, words per row,
            first word in ``maps``, words per map, layers.
        inner: ``(256,)`` for each code, bit 0 set where the voxel at offset (1, 1, 1) is in the mask and one of its
            three neighbours in the code is not, bit 1 the same for the voxel at (0, 0, 0).
        slices: ``(2 volumes * 2 slots * (y + 2) * pitch,)`` zeros.
        words: The same memory as 64-bit words.
        filled: ``(2 * 2 * y,)`` zeros.
        maps: Zeros. Of each class four maps: corners of the reference and the prediction, boundary voxels of both.
        coincident: ``(classes, 2, 256)`` zeros; receives how often a code occurs where both surfaces have the corner,
            in the reference and in the prediction.
    """
    nz, ny, nx = shape
    pitch = len(slices) // (4 * (ny + 2))
    row_words, half, chunk_words = U(pitch // 8), U(len(words) // 2), U(CHUNK // 8)
    slot_words = U(ny + 2) * row_words
    below = 0 if planar else 1
    first_chunk, last_chunk = box[2] // CHUNK, (box[5] + 1) // CHUNK
    for z in range(box[0], box[3] + 1 + below):
        new = z & 1
        if z == box[0] and not planar:
            _load_slice(reference, z - 1, shape, occupied, slices, 1 - new, pitch, filled)
            _load_slice(prediction, z - 1, shape, occupied, slices, 3 - new, pitch, filled)
        _load_slice(reference, z, shape, occupied, slices, new, pitch, filled)
        _load_slice(prediction, z, shape, occupied, slices, 2 + new, pitch, filled)
        old = new if planar else 1 - new
        for y in range(box[1], box[4] + 2):
            above = max(y - 1, 0)
            here = min(y, ny - 1)
            if not (
                filled[new * ny + above] | filled[new * ny + here] | filled[old * ny + above] | filled[old * ny + here]
            ):
                continue
            upper = U(new) * slot_words + U(y) * row_words
            lower = U(old) * slot_words + U(y) * row_words
            for chunk in range(first_chunk, last_chunk + 1):
                start = U(chunk + 1) * chunk_words
                any_difference = U(0)
                for i in range(start, start + chunk_words):
                    any_difference |= _differences(words, i, lower, upper, row_words)
                    any_difference |= _differences(words, i, lower + half, upper + half, row_words)
                if any_difference == U(0):
                    continue
                for i in range(start, start + chunk_words):
                    flags = _differences(words, i, lower, upper, row_words)
                    flags |= _differences(words, i, lower + half, upper + half, row_words)
                    while flags:
                        shift = trailing_zeros(flags) & U(56)
                        flags &= ~(LOW_BYTE << shift)
                        x = np.int64(((i - chunk_words) << U(3)) + (shift >> U(3)))
                        in_reference = _neighbourhood(words, i, lower, upper, row_words, shift)
                        in_prediction = _neighbourhood(words, i, lower + half, upper + half, row_words, shift)
                        counted = not has_label(in_reference, ignore)
                        on_r, second_r, code_r, simple_r = _surface_of(in_reference, members)
                        on_p, second_p, code_p, simple_p = _surface_of(in_prediction, members)
                        todo = on_r | on_p
                        while todo:
                            place = trailing_zeros(todo)
                            todo &= todo - U(1)
                            c = np.int64(place)
                            rows, row, size = grids[c, 3], grids[c, 4], grids[c, 6]
                            offset = x - grids[c, 2]
                            word = grids[c, 5] + ((z - grids[c, 0]) * rows + y - grids[c, 1]) * row + (offset >> 6) + 1
                            bit = U(1) << U(offset & 63)
                            diagonal = word - (below * rows + 1) * row
                            diagonal_bit = bit >> U(1)
                            if diagonal_bit == U(0):
                                diagonal -= 1
                                diagonal_bit = U(1) << U(63)
                            code = U(0)
                            if on_r >> place & U(1):
                                if not simple_r:
                                    code = _code_of(in_reference, members, place)
                                else:
                                    code = code_r if second_r >> place & U(1) else LOW_BYTE - code_r
                                maps[word] |= bit
                                sides = inner[np.int64(code)]
                                if sides & 1:
                                    maps[word + 2 * size] |= bit
                                if sides & 2:
                                    maps[diagonal + 2 * size] |= diagonal_bit
                            if on_p >> place & U(1):
                                other = code_p if second_p >> place & U(1) else LOW_BYTE - code_p
                                if not simple_p:
                                    other = _code_of(in_prediction, members, place)
                                maps[word + size] |= bit
                                sides = inner[np.int64(other)]
                                if sides & 1:
                                    maps[word + 3 * size] |= bit
                                if sides & 2:
                                    maps[diagonal + 3 * size] |= diagonal_bit
                                if counted and on_r >> place & U(1):
                                    coincident[c, 0, np.int64(code)] += 1
                                    coincident[c, 1, np.int64(other)] += 1
