"""Compiled passes over the label volumes: overlap and boxes in the first, all surfaces of all classes in the second.

Volumes hold one byte per voxel, so a 64-bit word is 8 neighbours in x, and a few operations on words find the few
places where labels meet; only these are looked at one by one. The methods on bytes of a word are those of "Hacker's
Delight" (Warren, chapters 2 and 6).

Words are unsigned throughout: numba turns a mixture of uint64 and int64 into floats. Indices of the innermost loops are
unsigned too: a signed one may count from the end, and the test for that keeps the loop from being vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.compiled import jit
from nnunetv2_meddino.evaluation.surface.instructions import trailing_zeros

U = np.uint64

CHUNK = 64
"""Voxels, or corners, that are compared at once: one AVX-512 or two AVX2 registers of bytes."""

Z0, Y0, X0, LAYERS, ROWS, ROW_WORDS, MAP_WORDS, FIRST_WORD = range(8)
"""Columns of ``grids``, which says where the bit maps of a class lie: first corner of its box in the volume; layers,
rows per layer and words per row of each of its four maps; words of a map, and the first word of the first map."""

LOW_BYTE = U(0xFF)
ONES = U(0x0101010101010101)
LOW_SEVEN = U(0x7F7F7F7F7F7F7F7F)
HIGH_BITS = U(0x8080808080808080)
GATHER = U(0x0102040810204080)
"""Times this, the lowest bits of the bytes of a word stand in order in its top byte."""

_CODES = np.arange(256)
BOUNDARY_SIDES = (
    (_CODES >> 7 & 1 & ~(_CODES >> 3 & _CODES >> 5 & _CODES >> 6))
    | (_CODES & 1 & ~(_CODES >> 4 & _CODES >> 2 & _CODES >> 1)) << 1
).astype(np.uint8)
"""For each code, bit 0 set where the voxel at offset (1, 1, 1) is in the mask and one of its three neighbours in the
code is not, bit 1 the same for the voxel at (0, 0, 0). Two opposite corners of a voxel show all its six neighbours."""


@jit
def scan_volumes(reference: NDArray[np.uint8], prediction: NDArray[np.uint8], ignore: int) -> Any:
    """Count label pairs, and find each label's box and the rows with any label but 0.

    Args:
        reference: ``(z, y, x)`` labels, contiguous.
        prediction: Labels of the same shape, contiguous.
        ignore: Reference label whose voxels hold no prediction, or -1.

    Returns:
        ``(256, 256)`` voxels by ``[reference label, prediction label]``; ``(256, 6)`` of each label in either volume:
        z, y, x minima and maxima; ``(z * y,)`` 1 for rows with a label other than 0 in either volume.
    """
    nz, ny, nx = reference.shape
    reference, prediction = reference.reshape(-1), prediction.reshape(-1)
    confusion = np.zeros((256, 256), dtype=np.int64)
    boxes = np.full((256, 6), -1, dtype=np.int64)
    boxes[:, :3] = max(nz, ny, nx)
    occupied = np.zeros(nz * ny, dtype=np.uint8)
    for z in range(nz):
        for y in range(ny):
            row = (z * ny + y) * nx
            start = 0
            while start < nx:
                stop = min(start + CHUNK, nx)
                a, b = reference[row + start], prediction[row + start]
                different = np.uint8(0)  # most chunks lie within one label: one branch a chunk, not one a voxel
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
    return confusion, boxes, occupied


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
        whether this is complete, as it is where only two labels meet.
    """
    first = labels & LOW_BYTE
    other = labels ^ (first * ONES)  # 0 in the bytes that hold the first label
    if other == U(0):
        return U(0), U(0), U(0), True
    # the sum carries into a byte's high bit where one of its lower seven is set, and never out of the byte
    which = (((other & LOW_SEVEN) + LOW_SEVEN) | other) & HIGH_BITS
    second = labels >> (trailing_zeros(other) & U(56)) & LOW_BYTE
    if other == (which >> U(7)) * (first ^ second):  # all other bytes hold the second label
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
def _has_label(labels: Any, label: int) -> bool:
    """Return whether one of the eight bytes of a word is ``label``; none is -1."""
    if label < 0:
        return False
    other = labels ^ (U(label) * ONES)
    # a byte of 0 wraps to 255 and shows its high bit; so may a byte of 1 above it, which changes nothing
    return ((other - ONES) & ~other & HIGH_BITS) != U(0)


@jit
def draw_surfaces(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    planar: bool,
    ignore: int,
    occupied: NDArray[np.uint8],
    box: NDArray[np.int64],
    members: NDArray[np.uint64],
    grids: NDArray[np.int64],
    maps: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """Draw the surface corners and the boundary voxels of all classes into bit maps.

    Args:
        reference: ``(z, y, x)`` labels, contiguous.
        prediction: Labels of the same shape, contiguous, 0 where the reference is ``ignore``.
        planar: The volume is one slice, its own neighbour above and below.
        ignore: Label that no surface may touch to be counted as coincident, or -1.
        occupied: ``(z * y,)`` from ``scan_volumes``.
        box: Z, y, x minima and maxima of all classes' voxels.
        members: ``(256,)`` bit ``c`` set where the label belongs to class ``c``.
        grids: ``(classes, 8)``; see ``Z0`` and so on.
        maps: Zeros. Of each class four maps: corners of the reference and the prediction, boundary voxels of both.

    Returns:
        ``(classes, 2, 256)`` how often a code occurs where both surfaces have the corner, in the reference and in the
        prediction.
    """
    nz, ny, nx = shape = reference.shape
    reference, prediction = reference.reshape(-1), prediction.reshape(-1)
    coincident = np.zeros((len(grids), 2, 256), dtype=np.int64)
    # Two slices of each volume at a time, rows padded by a chunk of zeros on both sides and slices by a row, so that no
    # neighbour needs a check. Slice z lies in slot z & 1, where it replaces slice z - 2.
    pitch = CHUNK * (nx // CHUNK + 2)
    words = np.zeros(2 * 2 * (ny + 2) * pitch // 8, dtype=np.uint64)
    slices = words.view(np.uint8)
    filled = np.zeros(2 * 2 * ny, dtype=np.uint8)
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
                if any_difference == U(0):  # no surface of either volume, as nearly everywhere
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
                        counted = not _has_label(in_reference, ignore)
                        on_r, second_r, code_r, simple_r = _surface_of(in_reference, members)
                        on_p, second_p, code_p, simple_p = _surface_of(in_prediction, members)
                        todo = on_r | on_p
                        while todo:
                            place = trailing_zeros(todo)
                            todo &= todo - U(1)
                            c = np.int64(place)
                            rows, row, size = grids[c, ROWS], grids[c, ROW_WORDS], grids[c, MAP_WORDS]
                            offset = x - grids[c, X0]
                            word = grids[c, FIRST_WORD] + ((z - grids[c, Z0]) * rows + y - grids[c, Y0]) * row
                            word += (offset >> 6) + 1  # a row begins with an empty word
                            bit = U(1) << U(offset & 63)
                            # the corner at (z, y, x) has the voxel of that index at offset (1, 1, 1), and the one
                            # before it on every axis at (0, 0, 0)
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
                                sides = BOUNDARY_SIDES[np.int64(code)]
                                if sides & 1:
                                    maps[word + 2 * size] |= bit
                                if sides & 2:
                                    maps[diagonal + 2 * size] |= diagonal_bit
                            if on_p >> place & U(1):
                                other = code_p if second_p >> place & U(1) else LOW_BYTE - code_p
                                if not simple_p:
                                    other = _code_of(in_prediction, members, place)
                                maps[word + size] |= bit
                                sides = BOUNDARY_SIDES[np.int64(other)]
                                if sides & 1:
                                    maps[word + 3 * size] |= bit
                                if sides & 2:
                                    maps[diagonal + 3 * size] |= diagonal_bit
                                if counted and on_r >> place & U(1):
                                    coincident[c, 0, np.int64(code)] += 1
                                    coincident[c, 1, np.int64(other)] += 1
    return coincident
