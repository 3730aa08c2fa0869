"""What is in a corpus, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pretraining.corpus.format import (
    DUPLICATES_FILE,
    EMPTY,
    FLAG_SEPARATOR,
    REJECTED_FILE,
    SLICES_FILE,
    read_corpus,
    read_lines,
    read_table,
    read_volumes,
)
from pretraining.corpus.storage import STORE_FLAGS, open_volume
from pretraining.curation.deduplicate import COPY_FLAGS
from pretraining.curation.process_volume import FAILURES
from pretraining.curation.volume import FLAGS, REASONS
from pretraining.progress import Progress

MEANINGS = REASONS | FAILURES
"""Why a volume was rejected, by reason."""

FLAG_MEANINGS = FLAGS | STORE_FLAGS | COPY_FLAGS | {EMPTY: "the slice holds air alone"}
"""What was changed or is unusual, by flag."""

HU_SAMPLE = 400
"""Number of slices, evenly spread, that the intensity histogram is made of."""

_POSITIONS = 20


def _even(first: float, last: float, bins: int) -> tuple[float, ...]:
    """Return the edges of bins of one width, as decimals: a spacing of 0.7 mm is on the edge 0.7."""
    return tuple(np.linspace(first, last, bins + 1).round(6).tolist())


_SPACING_EDGES_MM = _even(0, 2, 40)
_THICKNESS_EDGES_MM = _even(0, 10, 20)
_LENGTH_EDGES_MM = _even(0, 2000, 40)
_FRACTION_EDGES = _even(0, 1, 20)
_HU_EDGES = _even(-1050, 2000, 61)


def inspect_corpus(corpus: Path, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Return the numbers of a corpus as JSON values.

    Histograms are ``{"edges": [...], "counts": [...], "below": 0, "above": 0}`` with bins of one width; what lies
    beyond the edges is counted apart.

    Raises:
        DataError: There is no finished corpus, or a file of it cannot be read.
    """
    content = read_corpus(corpus)
    volumes = read_volumes(corpus)
    slices = read_table(corpus / SLICES_FILE, ["volume", "index", "body_fraction", "flags"])
    sizes = _file_sizes(corpus, volumes["path"], progress)
    counts = np.asarray(volumes["slices"], np.int64)
    voxels = counts * np.asarray(volumes["height"], np.int64) * np.asarray(volumes["width"], np.int64)
    by_source = {
        name: description | {"bytes": int(sizes[[source == name for source in volumes["source"]]].sum())}
        for name, description in content["sources"].items()
    }
    duplicates = read_lines(corpus / DUPLICATES_FILE)
    return {
        "hash": content["hash"],
        "settings": content["settings"],
        "counts": content["counts"],
        "volumes": content["volumes"],
        "slices": content["slices"],
        "bytes": int(sizes.sum()),
        "bytes_per_voxel": round(float(sizes.sum() / max(voxels.sum(), 1)), 4),
        "sources": by_source,
        "licences": _slices_by(volumes["licence"], counts),
        "modalities": _slices_by(volumes["modality"], counts),
        "sizes_px": _slices_by([f"{h}x{w}" for h, w in zip(volumes["height"], volumes["width"], strict=True)], counts),
        "spacing": _spacing(volumes, counts),
        "body": _body(slices, counts),
        "intensity": _intensities(corpus, volumes["path"], slices, progress),
        "flags": _flags(volumes["flags"], slices),
        "rejections": _rejections(read_lines(corpus / REJECTED_FILE)),
        "duplicates": content["duplicates"] | {"of": _pairs(duplicates)},
        "exclusions": content["exclusions"],
    }


def _file_sizes(corpus: Path, paths: Sequence[str], progress: Progress) -> NDArray[np.int64]:
    sizes = np.zeros(len(paths), np.int64)
    for number, path in enumerate(paths):
        sizes[number] = (corpus / path).stat().st_size if (corpus / path).is_file() else 0
        progress("measuring files", number + 1, len(paths))
    return sizes


def _slices_by(values: Sequence[str], counts: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """Return number of volumes and slices for each value, most slices first."""
    result: dict[str, dict[str, int]] = {}
    for value, count in zip(values, counts.tolist(), strict=True):
        entry = result.setdefault(value, {"volumes": 0, "slices": 0})
        entry["volumes"] += 1
        entry["slices"] += count
    return dict(sorted(result.items(), key=lambda item: (-item[1]["slices"], item[0])))


def histogram(values: NDArray[Any], edges: Sequence[float], weights: NDArray[Any] | None = None) -> dict[str, Any]:
    """Return how many values lie between the edges, below the first and above the last."""
    weights = np.ones(len(values), np.int64) if weights is None else weights
    counts, _ = np.histogram(values, edges, weights=weights)
    return {
        "edges": list(edges),
        "counts": [int(count) for count in counts],
        "below": int(weights[values < edges[0]].sum()),
        "above": int(weights[values > edges[-1]].sum()),
    }


def _spacing(volumes: dict[str, list[Any]], counts: NDArray[np.int64]) -> dict[str, Any]:
    # rounded: as a float32, as headers keep it, 0.95 lies below 0.95
    z, y = (np.asarray(volumes[f"spacing_{axis}_mm"], np.float64).round(4) for axis in "zy")
    return {
        "in_plane_mm": histogram(y, _SPACING_EDGES_MM, counts),
        "between_slices_mm": histogram(z, _THICKNESS_EDGES_MM, counts),
        "scan_length_mm": histogram(z * counts, _LENGTH_EDGES_MM),
    }


def _body(slices: pa.Table, counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return how the body fraction is spread, over all slices and along the scans."""
    fraction = slices["body_fraction"].to_numpy()
    volume, index = slices["volume"].to_numpy(), slices["index"].to_numpy()
    position = (index + 0.5) / counts[volume] if len(volume) else np.empty(0)
    bins = np.minimum((position * _POSITIONS).astype(np.int64), _POSITIONS - 1)
    number = np.bincount(bins, minlength=_POSITIONS)
    mean = np.bincount(bins, weights=fraction, minlength=_POSITIONS) / np.maximum(number, 1)
    return {
        "fraction": histogram(fraction, _FRACTION_EDGES),
        "mean_fraction_by_relative_z": [round(float(value), 4) for value in mean],
        "slices_by_relative_z": number.tolist(),
    }


def _intensities(corpus: Path, paths: Sequence[str], slices: pa.Table, progress: Progress) -> dict[str, Any]:
    """Return the histogram of the voxels of some slices."""
    rows = np.unique(np.linspace(0, len(slices) - 1, min(HU_SAMPLE, len(slices))).astype(np.int64))
    volume, index = slices["volume"].to_numpy(), slices["index"].to_numpy()
    total = histogram(np.empty(0), _HU_EDGES)
    for number, row in enumerate(rows):
        image = open_volume(corpus / paths[volume[row]])[int(index[row])]
        own = histogram(image.ravel(), _HU_EDGES)
        total["counts"] = [a + b for a, b in zip(total["counts"], own["counts"], strict=True)]
        total |= {side: total[side] + own[side] for side in ("below", "above")}
        progress("reading slices", number + 1, len(rows))
    return {"hu": total, "slices_sampled": len(rows)}


def _flags(volume_flags: Sequence[Sequence[str]], slices: pa.Table) -> dict[str, dict[str, Any]]:
    volumes = Counter(flag for flags in volume_flags for flag in flags)
    by_slice: Counter[str] = Counter()
    for entry in slices["flags"].combine_chunks().value_counts().to_pylist():
        for flag in filter(None, entry["values"].split(FLAG_SEPARATOR)):
            by_slice[flag] += entry["counts"]
    return {
        flag: {"volumes": volumes[flag], "slices": count, "meaning": FLAG_MEANINGS.get(flag, "")}
        for flag, count in sorted(by_slice.items(), key=lambda item: (-item[1], item[0]))
    }


def _rejections(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    reasons = Counter(line["reason"] for line in lines)
    return {
        reason: {
            "volumes": count,
            "meaning": MEANINGS.get(reason, ""),
            "cases": [f"{line['source']}/{line['case']}" for line in lines if line["reason"] == reason],
        }
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    }


def _pairs(lines: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many copies each source has of each: ``AMOS22 in BTCV: 3`` means three of AMOS22 were dropped."""
    pairs = Counter(f"{line['source']} in {line['of'].split('/')[0]}" for line in lines)
    return dict(sorted(pairs.items(), key=lambda item: (-item[1], item[0])))
