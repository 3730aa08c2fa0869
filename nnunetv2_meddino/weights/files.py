"""Reading and writing weight files: safetensors and PyTorch's own format, and never a line of pickled code."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.files import replacing
from nnunetv2_meddino.weights import identify

_scalar = np.float64(0).__reduce__()[0]  # numpy moved it, so that files hold one of two names for it
_NUMPY_SCALARS: list[Any] = [
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType, np.dtypes.Int64DType, np.dtypes.BoolDType),
]
"""All that a checkpoint of nnU-Net needs besides what PyTorch allows: the numbers in its log. They run no code."""


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds, as it is written there."""

    content: dict[str, Any]
    """Name -> tensor; nested dictionaries where the file has them."""
    metadata: dict[str, str]
    """The header of a safetensors file; empty for PyTorch's format."""


def read_file(path: Path) -> WeightsFile:
    """Read a weights file without executing anything in it.

    Raises:
        WeightsError: It is missing, empty, cut off, no weights file at all, or holds more than tensors.
    """
    if path.is_dir():
        raise WeightsError(f"{path} {identify.folder(path)}")
    try:
        with path.open("rb") as file:
            head = file.read(identify.HEAD_BYTES)
        size = path.stat().st_size
    except OSError as error:
        msg = f"The weights file {path} cannot be read: {error.strerror}. Check the path and its permissions."
        raise WeightsError(msg) from error
    if foreign := identify.foreign_file(path, head):
        raise WeightsError(f"{path} {foreign}")
    if head.startswith(b"PK\x03\x04"):
        return WeightsFile(_read_zip(path), {})
    # before the pickles: their first byte, 0x80, is also that of one in 32 header lengths
    if head[8:9] == b"{":
        header_end = 8 + int.from_bytes(head[:8], "little")
        if header_end > size:
            raise _damaged(path, f"its header ends at byte {header_end}, the file at byte {size}: it is cut off")
        return _read_safetensors(path)
    if head.startswith(b"\x80"):
        return WeightsFile(_read_torch(path), {})
    msg = (
        f"{path} is neither safetensors nor a PyTorch file; it begins with the bytes {head[:8].hex(' ')}. Name a "
        "weights file; `meddino weights list` shows the known weights."
    )
    raise WeightsError(msg)


def _damaged(path: Path, what: str) -> WeightsError:
    """Return the error of a file in one of our formats that cannot be read.

    Only a download that is provably not what was published may be deleted: a file elsewhere can be somebody's only one.
    """
    published = identify.published_name(path)
    if published is not None and file_sha256(published) != published.name:
        advice = f"Its download is not what was published (other checksum). Delete {published} and fetch it again."
    else:
        advice = (
            "Get the file again from where it came, or use another (`meddino weights list` shows where the known "
            "weights come from)."
        )
    return WeightsError(f"{path} is no usable weights file: {what}. {advice}")


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            return WeightsFile({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, f"safetensors reports {error}, so it is cut off or damaged") from error


def _read_zip(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            changed = archive.testzip()  # torch.load does not look at the checksums
    except Exception as error:  # a damaged directory of the archive can raise anything
        raise _damaged(path, f"its end is missing, so it is cut off ({error})") from error
    if changed:
        raise _damaged(path, f"the checksum of {changed} in it is wrong")
    if foreign := identify.foreign_zip(names):
        raise WeightsError(f"{path} {foreign}")
    return _read_torch(path)


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything; all of it means the same to the user
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if "Weights only load failed" in str(error) and foreign:
            msg = (
                f"{path} holds Python objects besides tensors ({foreign.group(1)}), and unpickling them would run code "
                "from the file, so it was not opened. If you trust its origin, load it once in Python and save only "
                "the tensors: torch.save(model.state_dict(), ...) or safetensors."
            )
            raise WeightsError(msg) from error
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise _damaged(path, f"PyTorch cannot read it ({first_line}), so it is cut off or damaged") from error
    if not isinstance(content, dict):
        msg = f"{path} holds a {type(content).__name__} instead of named tensors. Save a state dict: names and tensors."
        raise WeightsError(msg)
    return content


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and a header; the file appears under its name only when it is complete.

    The same content gives the same bytes, so that a checksum tells whether two files are alike.
    """
    own = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    with replacing(path) as temporary:
        save_file(own, temporary, dict(metadata))
        if len(metadata) > 1:
            _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the entries of a safetensors header in order: the library draws their order anew at every call."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(ordered) != size:
            raise AssertionError(f"{path}: the header has {len(ordered)} bytes in order, {size} as it was written")
        file.seek(8)
        file.write(ordered)


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write PyTorch's zip format; the file appears under its name only when it is complete."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # of torch's own file nobody learns what failed
        torch.save(dict(content), file)


def file_sha256(path: Path) -> str:
    """Return the checksum of a file as hexadecimal digits."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
