"""What the command line says about sources and corpora."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pretraining.corpus.format import DUPLICATES_FILE, EXCLUDED_FILE, REJECTED_FILE, read_lines
from pretraining.curation.collections import UNKNOWN_LICENCE, Collection
from pretraining.inspection.summary import MEANINGS

_FEW = 10


def sources_table(sources: Mapping[str, Collection], found: Mapping[str, int]) -> Table:
    """Return a row for every source; ``found`` has the number of volumes of those that were looked for."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAME", "collection", "licence", "contains"):
        table.add_column(column, overflow="fold", max_width=44)
    table.add_column("volumes", justify="right", no_wrap=True)
    table.add_column("found", justify="right", no_wrap=True)
    for name, source in sources.items():
        expected = "" if source.expected_volumes is None else str(source.expected_volumes)
        number = str(found[name]) if name in found else ""
        table.add_row(name, source.title, source.licence, ", ".join(source.contains), expected, number)
    return table


def source_text(source: Collection, found: int | None) -> str:
    """Return all that is known of a source."""
    expected = "unknown" if source.expected_volumes is None else str(source.expected_volumes)
    lines = [
        f"{source.name}: {source.title}",
        f"home page    {source.homepage}",
        f"licence      {source.licence}, {source.licence_url}",
        f"volumes      {expected}" + ("" if found is None else f"; found: {found}"),
        f"modality     {source.modality}",
        *(f"looked for   {pattern}" for pattern in source.images or ("every image that a reader knows",)),
        *(f"also named   {alias} for {case}" for alias, case in source.aliases.items()),
        *([f"contains     cases of {', '.join(source.contains)}"] if source.contains else []),
    ]
    paragraphs = [textwrap.fill(text, 110) for text in (source.how, source.note) if text]
    return "\n".join([*lines, *paragraphs])


def corpus_text(content: Mapping[str, Any], corpus: Path) -> str:
    """Return what a finished curation reports: every volume counted once, and what was left out and why."""
    lines = [_counts_text(content["counts"]), "", *_source_lines(content["sources"]), ""]
    duplicates = content["duplicates"]
    lines.append(
        f"duplicates: {duplicates['exact']} exact and {duplicates['near']} near ones dropped"
        + (f", {duplicates['near_kept']} near ones kept" if duplicates["near_kept"] else "")
        + f" ({DUPLICATES_FILE})"
    )
    if duplicates["spacing_disagrees"]:
        lines.append(
            f"  {duplicates['spacing_disagrees']} volumes have a copy whose header states another spacing: one of the "
            "two is wrong (flag spacing_disagrees)"
        )
    if content["counts"]["rejected"]:
        lines.append(f"rejected, by reason ({REJECTED_FILE}):")
        rejections: dict[str, int] = {}
        for line in read_lines(corpus / REJECTED_FILE):
            rejections[line["reason"]] = rejections.get(line["reason"], 0) + 1
        lines += [f"  {count:6}  {reason}: {MEANINGS.get(reason, '')}" for reason, count in sorted(rejections.items())]
    lines += _passed_over(content["passed_over"])
    if unknown := [name for name, own in content["sources"].items() if own["licence"] == UNKNOWN_LICENCE]:
        lines.append(f"licence unknown: {_some(unknown)}; a record (docs/corpus.md) states it")
    lines += exclusion_lines(content["exclusions"])
    lines += ["", f"{content['volumes']} volumes, {content['slices']} slices, hash {content['hash']}"]
    lines.append(f"look at it: meddino-pretrain inspect {shlex.quote(str(corpus))} -o pictures")
    return "\n".join(lines)


def _counts_text(counts: Mapping[str, int]) -> str:
    parts = " + ".join(f"{counts[name]} {name}" for name in ("curated", "rejected", "duplicates", "excluded"))
    return f"{counts['found']} volumes found = {parts}"


def _source_lines(sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = ("expected_volumes", "found", "curated", "rejected", "duplicates", "excluded", "slices")
    width = max(len("source"), *(len(name) for name in sources))
    heads = [name.removesuffix("_volumes") for name in names]
    lines = [f"{'source':{width}}  " + "  ".join(f"{head:>10}" for head in heads)]
    for source, own in sources.items():
        values = ["" if own[name] is None else str(own[name]) for name in names]
        lines.append(f"{source:{width}}  " + "  ".join(f"{value:>10}" for value in values))
    return lines


def _passed_over(sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is said of what lies in the folders of sources and is no volume of any."""
    lines = []
    for kind, what in (
        ("dicom_folders", "folders with DICOM images that no pattern names"),
        ("unlisted_folders", "folders that cannot be listed"),
    ):
        folders = [f"{name}: {path}" for name, own in sources.items() for path in own[kind]]
        lines += [f"passed over: {len(folders)} {what} ({_some(folders)})"] if folders else []
    images = sum(own["images"] for own in sources.values())
    lines += [f"passed over: {images} images that no pattern names, such as label maps"] if images else []
    endings: Counter[str] = Counter()
    for own in sources.values():
        endings.update(own["other_files"])
    if endings:
        kinds = _some([f"{count} {ending or 'without ending'}" for ending, count in endings.most_common()])
        lines.append(f"passed over: {endings.total()} files of formats that are not read here ({kinds})")
    return lines


def exclusion_lines(report: Mapping[str, Any]) -> list[str]:
    """Return what is said of exclusions; nothing if none were asked for."""
    if not report["lists"]:
        return []
    lines = [
        f"excluded: {report['cases_found']} of {report['cases_listed']} listed cases are among the sources; "
        f"{report['cases_excluded']} volumes left out, {report['by_id']} by id and {report['by_content']} by content "
        f"({EXCLUDED_FILE})"
    ]
    if report["not_found"]:
        lines.append(f"  not found anywhere: {_some(report['not_found'])}")
    for entry in report["lists"]:
        if entry["images_missing"] is None:
            lines.append(f"  {entry['file']}: no --images given, so copies under other names cannot be recognised")
        elif entry["images_missing"]:
            lines.append(f"  {entry['file']}: without an image, compared by id alone: {_some(entry['images_missing'])}")
    for image in report["images_unreadable"]:
        lines.append(f"  the image of {image['case']} could not be read, compared by id alone: {image['message']}")
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def inspection_text(inspection: Mapping[str, Any]) -> str:
    """Return the numbers of a corpus for reading."""
    size = inspection["bytes"] / 1e6
    lines = [
        f"{inspection['volumes']} volumes, {inspection['slices']} slices, {size:.1f} MB "
        f"({inspection['bytes_per_voxel']:.2f} bytes a voxel), hash {inspection['hash']}",
        "settings: " + ", ".join(f"{name} {value}" for name, value in inspection["settings"].items()),
        _counts_text(inspection["counts"]),
        "",
        *_source_lines(inspection["sources"]),
    ]
    for title, key in (("licences", "licences"), ("modalities", "modalities"), ("slice sizes", "sizes_px")):
        lines += ["", f"{title}:"]
        lines += [f"  {v['volumes']:6} volumes {v['slices']:8} slices  {name}" for name, v in inspection[key].items()]
    spacing, body = inspection["spacing"], inspection["body"]
    lines += _bars("pixel spacing, mm (slices)", spacing["in_plane_mm"])
    lines += _bars("distance between slices, mm (slices)", spacing["between_slices_mm"])
    lines += _bars("scan length, mm (volumes)", spacing["scan_length_mm"])
    lines += _bars("share of the slice that is body (slices)", body["fraction"])
    flags = [
        f"  {flag['volumes']:6} volumes {flag['slices']:8} slices  {name}: {flag['meaning']}"
        for name, flag in inspection["flags"].items()
    ]
    rejections = [
        f"  {entry['volumes']:6}  {reason}: {entry['meaning']} ({_some(entry['cases'])})"
        for reason, entry in inspection["rejections"].items()
    ]
    duplicates = inspection["duplicates"]
    for title, found in (("flags", flags), ("rejected", rejections)):
        lines += ["", f"{title}:", *found] if found else ["", f"{title}: none"]
    lines += ["", f"duplicates dropped: {duplicates['exact']} exact, {duplicates['near']} near"]
    lines += [f"  {count:6}  {pair}" for pair, count in duplicates["of"].items()]
    lines += exclusion_lines(inspection["exclusions"])
    return "\n".join(lines)


def _bars(title: str, histogram: Mapping[str, Any]) -> list[str]:
    """Return a histogram as lines; bins without a value are left out."""
    edges = [f"{edge:g}" for edge in histogram["edges"]]
    rows = [(f"below {edges[0]}", histogram["below"])]
    rows += [(f"{low:>6} to {high}", n) for low, high, n in zip(edges, edges[1:], histogram["counts"], strict=False)]
    rows += [(f"above {edges[-1]}", histogram["above"])]
    most = max(count for _, count in rows)
    drawn = [f"  {bin:<16} {count:8}  {'#' * max(1, round(40 * count / most))}" for bin, count in rows if count]
    return ["", f"{title}:", *drawn]
