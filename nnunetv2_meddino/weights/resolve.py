"""What a user's name for pretrained weights stands for: a file, a catalog entry or a hub id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.weights.catalog import CATALOG, CatalogEntry
from nnunetv2_meddino.weights.files import file_sha256
from nnunetv2_meddino.weights.hub import parse_hub_id
from nnunetv2_meddino.weights.identify import WEIGHTS_SUFFIXES


def resolve(spec: str) -> tuple[Path | None, CatalogEntry | None]:
    """Return the existing file that a spec names, or None where it has to be fetched; and its catalog entry.

    An existing file wins, then a catalog name, then a hub id.

    Raises:
        WeightsError: It names nothing.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        return path, None
    if spec in CATALOG:
        return None, CATALOG[spec]
    explicit = spec.startswith(("hf-hub:", "hf_hub:"))
    if not explicit and (path.exists() or path.is_absolute() or spec.startswith(("./", "../", "~"))):
        return path, None  # read_file says what is wrong with it
    place = parse_hub_id(spec)
    if place and (explicit or place.filename or path.suffix not in WEIGHTS_SUFFIXES):
        by_repository = {entry.repository: entry for entry in CATALOG.values()}
        entry = by_repository.get(place.repository)
        return None, entry if entry and place.filename in (None, entry.filename) else None
    near = get_close_matches(spec.lower(), CATALOG, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    msg = (
        f"There are no weights {spec!r}: no such file here ({Path.cwd()}), no catalog name ({', '.join(CATALOG)}), no "
        f"hub id (org/name or org/name:filename).{hint}"
    )
    raise WeightsError(msg)


def file_provenance(
    path: Path, spec: str, entry: CatalogEntry | None, file_format: str, derived_from: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return where weights are from, as JSON values, to be kept with whatever is trained from them.

    Args:
        path: The file that was read.
        spec: What the user asked for.
        entry: Its catalog entry, where it has one.
        file_format: The layout that the file is in.
        derived_from: The provenance that the file itself carries; name, licence and statistics are handed on.

    Returns:
        name, source, path, sha256, size_bytes, format, licence, licence_url, input_statistics and derived_from.
    """
    inherited = derived_from or {}
    if Path(spec).expanduser().is_file():
        source = str(path)
    else:
        source = f"hub: {entry.repository}/{entry.filename}" if entry else f"hub: {spec}"
    return {
        "name": entry.name if entry else inherited.get("name") or path.stem,
        "source": source,
        "path": str(path.resolve()),
        "sha256": file_sha256(path),
        "size_bytes": path.stat().st_size,
        "format": file_format,
        "licence": entry.licence if entry else inherited.get("licence"),
        "licence_url": entry.licence_url if entry else inherited.get("licence_url"),
        "input_statistics": asdict(entry.input_statistics) if entry else inherited.get("input_statistics"),
        "derived_from": derived_from,
    }
