"""Reading and writing weight files: safetensors and PyTorch's own format, and never a line of pickled code."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.files import replacing


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
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", ".pth", ".pt", ".bin"))
        msg = f"{path} is a folder. Name the weights file in it{': ' + ', '.join(inside) if inside else ''}."
        raise WeightsError(msg)
    try:
        with path.open("rb") as file:
            head = file.read(64)
        size = path.stat().st_size
    except OSError as error:
        msg = f"The weights file {path} cannot be read: {error.strerror}. Check the path and its permissions."
        raise WeightsError(msg) from error
    if not head:
        raise _damaged(path, "it is empty")
    if head.startswith(b"version https://git-lfs"):
        raise _damaged(path, "it is a git-lfs pointer, not the weights; `git lfs pull` in its folder gets them")
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
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _damaged(path, "it is a web page, not the weights: the download was answered by a login or error page")
    raise _damaged(path, "it is neither safetensors nor a PyTorch file")


def _damaged(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path} is no usable weights file: {what}. Delete it and get it again (`meddino weights list` shows where the "
        "known weights come from)."
    )


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
    if not any(name.endswith("/data.pkl") for name in names):
        raise _damaged(path, "it is a zip archive, but not one that PyTorch wrote")
    if any(name.endswith("/constants.pkl") for name in names):
        raise _damaged(path, "it is a TorchScript program, which would have to be run; weights alone are needed")
    return _read_torch(path)


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything; all of it means the same to the user
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            msg = (
                f"{path} holds Python objects besides tensors, and unpickling them would run code from the file, so it "
                "was not opened. If you trust its origin, load it once in Python and save only the tensors: "
                "torch.save(model.state_dict(), ...) or safetensors."
            )
            raise WeightsError(msg) from error
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise _damaged(path, f"PyTorch cannot read it ({first_line}), so it is cut off or damaged") from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it holds a {type(content).__name__} instead of named tensors")
    return content


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and a header; the file appears under its name only when it is complete."""
    own = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    with replacing(path) as temporary:
        save_file(own, temporary, dict(metadata))


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
