"""How alike a fingerprint calls copies of one scan, parts of one patient, and different patients, on real CT.

Needs CT volumes of which no two are of one patient, but for those that ``ONE_SCAN`` and ``ONE_PATIENT`` name.

    python benchmarks/fingerprints.py PATH [PATH ...] [--out FOLDER] [--before fingerprints_cpu.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from measure import RESULTS, write_results
from numpy.typing import NDArray

from pretraining.curation.fingerprint import Fingerprint, fingerprint
from pretraining.curation.likeness import NEAR_DUPLICATE, likeness
from pretraining.curation.readers.read import candidates_of, read_volume
from pretraining.curation.volume import Volume
from pretraining.modality import Modality

ONE_PATIENT = re.compile("ctmini|abdomen_3mm|ts_ct_image")
ONE_SCAN = re.compile("chest_.*[|]chest_|abdomen_3mm.*[|]ctmini_00[456]|ctmini_00[78].*[|]ts_ct")
NOTES = (
    "Similarity of fingerprints, quantiles. exports: a volume against itself after noise of 20 HU with an offset of "
    "10, clipping to [-1000, 1000], cropping to 16 slices or to two thirds, a wider field of view, every second slice, "
    "the mean of three slices, half the pixels, or most of these together. one scan, two files: such pairs in the "
    "data. parts: first and second half of one volume, and slabs of one patient, without more than two slices in "
    "common. patients: different ones. header: one header is as it was read, the other one too (right), or it says "
    "1 mm, or is wrong along z by 5/3 or 1/5, along all axes by 1.25, or along y by 1.3. found: share at or above the "
    "threshold."
)
QUANTILES = (0, 1, 5, 50, 95, 99, 100)


def _with(volume: Volume, voxels: NDArray[Any], *factors: int) -> Volume:
    z, y, x = np.multiply(volume.spacing_mm, factors or (1, 1, 1)).tolist()
    return dataclasses.replace(volume, voxels=np.ascontiguousarray(voxels, np.int16), spacing_mm=(z, y, x))


def _mean_of_three(volume: Volume) -> Volume:
    thirds = volume.voxels[: len(volume.voxels) // 3 * 3]
    return _with(volume, thirds.reshape(-1, 3, *thirds.shape[1:]).mean(1).round(), 3, 1, 1)


def _noisy(volume: Volume) -> Volume:
    noise = np.random.default_rng(0).normal(10, 20, volume.voxels.shape)
    return _with(volume, (volume.voxels + noise).round().clip(-1024, 3000))


def _several(volume: Volume) -> Volume:
    return _with(volume, _noisy(volume).voxels[len(volume.voxels) // 3 :: 2, ::2, ::2].clip(-1000, 1000), 2, 2, 2)


EXPORTS: Mapping[str, Callable[[Volume], Volume]] = {
    "as it is": lambda v: v,
    "noise": _noisy,
    "clipped": lambda v: _with(v, v.voxels.clip(-1000, 1000)),
    "16 slices": lambda v: _with(v, v.voxels[3:19]),
    "two thirds": lambda v: _with(v, v.voxels[len(v.voxels) // 3 :]),
    "wider": lambda v: _with(v, np.pad(v.voxels, ((0, 0), (40, 20), (10, 60)), constant_values=-1000)),
    "every second": lambda v: _with(v, v.voxels[1::2], 2, 1, 1),
    "mean of three": _mean_of_three,
    "half the pixels": lambda v: _with(v, v.voxels[:, ::2, ::2], 1, 2, 2),
    "several": _several,
}
Spacing = tuple[float, float, float]
HEADERS: Mapping[str, Callable[[Spacing], Spacing]] = {
    "right": lambda s: s,
    "1 mm": lambda _: (1.0, 1.0, 1.0),
    "z * 5/3": lambda s: (s[0] * 5 / 3, s[1], s[2]),
    "z / 5": lambda s: (s[0] / 5, s[1], s[2]),
    "all * 1.25": lambda s: (1.25 * s[0], 1.25 * s[1], 1.25 * s[2]),
    "y * 1.3": lambda s: (s[0], 1.3 * s[1], s[2]),
}


def read(paths: Sequence[Path]) -> dict[str, Volume]:
    """Return the CT volumes by name of file or folder."""
    candidates = [candidate for path in paths for candidate in candidates_of(path)]
    return {
        candidate.path.name.split(".")[0]: read_volume(candidate, Modality.CT)
        for candidate in candidates
        if not candidate.path.name.startswith("mr_")
    }


def stated(volume: Volume, header: str) -> Fingerprint:
    """Return the fingerprint under a header that may be wrong."""
    return fingerprint(dataclasses.replace(volume, spacing_mm=HEADERS[header](volume.spacing_mm)))


def kind(a: str, b: str) -> str:
    """Return what two files of these names, in alphabetical order, have in common."""
    if ONE_SCAN.match(f"{a}|{b}"):
        return "one scan, two files"
    return "parts" if ONE_PATIENT.match(a) and ONE_PATIENT.match(b) else "patients"


def pairs(volumes: Mapping[str, Volume]) -> Iterator[tuple[str, str, str, Fingerprint, Fingerprint]]:
    """Yield kind of a pair, its names, the header of the second, and both."""
    prints = {name: {header: stated(volume, header) for header in HEADERS} for name, volume in volumes.items()}
    for name, volume in volumes.items():
        half = len(volume.voxels) // 2
        lower, upper = _with(volume, volume.voxels[:half]), _with(volume, volume.voxels[half:])
        others = {export: change(volume) for export, change in EXPORTS.items()}
        for header in HEADERS:
            for export, other in others.items():
                yield "exports", f"{name}, {export}", header, prints[name]["right"], stated(other, header)
            yield "parts", f"halves of {name}", header, fingerprint(lower), stated(upper, header)
    names = sorted(volumes)
    for a, b in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        for header in HEADERS:
            yield kind(a, b), f"{a} | {b}", header, prints[a]["right"], prints[b][header]


def main() -> None:
    """Print the distributions and the pairs nearest to the threshold, and write the former beside other results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a folder of CT volumes, or a file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--before", type=Path, help="results of another version, to be shown beside")
    options = parser.parse_args()
    values: dict[str, list[tuple[float, str]]] = {}
    for what, names, header, a, b in pairs(read(options.paths)):
        group = f"{what}, header {'right' if header == 'right' else 'wrong'}"
        values.setdefault(group, []).append((likeness(a, b).similarity, f"{names}, {header}"))
    rows: list[dict[str, Any]] = []
    for group, own in sorted(values.items()):
        numbers = np.array([value for value, _ in own])
        quantiles = {f"{q} %": round(float(np.percentile(numbers, q)), 3) for q in QUANTILES}
        found = round(float((numbers >= NEAR_DUPLICATE).mean()), 4)
        rows.append({"threshold": NEAR_DUPLICATE, "pairs": group, "number": len(own)} | quantiles | {"found": found})
        for value, pair in sorted(own, reverse=not group.startswith(("exports", "one scan")))[:5]:
            sys.stderr.write(f"{group}: {value:.3f} {pair}\n")
    before = json.loads(options.before.read_text())["rows"] if options.before else []
    rows = [row | {"version": "before"} for row in before] + [row | {"version": "now"} for row in rows]
    write_results("fingerprints", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
