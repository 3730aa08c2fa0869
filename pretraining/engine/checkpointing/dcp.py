"""Tensors of all processes to and from a folder, with PyTorch's distributed checkpoint (DCP) but not its pickles.

DCP keeps its index in a pickle and unpickles whatever is no tensor. Here the index is read by an unpickler that knows
only the classes of an index, plain values are kept elsewhere, and tensors are read with ``weights_only``.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner

from nnunetv2_meddino.errors import CheckpointError
from pretraining.engine.agreement import Agreement
from pretraining.engine.checkpointing.manifest import FileChecksum, file_checksum

INDEX = ".metadata"

# DCP says so at every save of a process alone, which asks for exactly that
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_METADATA = "torch.distributed.checkpoint.metadata"
_INDEX_CLASSES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
}


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], agreement: Agreement) -> dict[str, FileChecksum]:
    """Write tensors to a folder, each process its shards, and see them to the disk.

    Args:
        folder: Exists, and all processes see it.
        tensors: On the host, by name. What is no ``DTensor`` is the same in all processes and written by one.
        agreement: Of all processes, which all call this.

    Returns:
        Seals of the files of all processes, by name.

    Raises:
        Exception: The first error of any process, as it was there, everywhere.
    """
    writer = _Writer(folder)
    try:
        dcp.save(dict(tensors), storage_writer=writer, process_group=agreement.group, no_dist=agreement.group is None)
    except CheckpointException as error:
        raise _first_failure(error) from error
    return {name: checksum for files in agreement.gather(writer.files) for name, checksum in files.items()}


def read_index(folder: Path, files: Collection[str]) -> Metadata:
    """Return DCP's index of a folder; nothing of it is executed.

    Args:
        folder: Of a checkpoint.
        files: That may be read.

    Raises:
        CheckpointError: The index asks for anything but tensors in these files.
        OSError: It cannot be read.
    """
    path = folder / INDEX
    try:
        index = _IndexUnpickler(io.BytesIO(path.read_bytes())).load()
        known = isinstance(index, Metadata) and len(saved_tensors(index)) == len(index.state_dict_metadata)
        known = known and all(place.relative_path in files for place in index.storage_data.values())
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path} is not read, it is no index of tensors: {error}") from error
    if not known:
        raise CheckpointError(f"{path} is not read: it speaks of other things than tensors in this checkpoint")
    return index


def saved_tensors(index: Metadata) -> dict[str, TensorStorageMetadata]:
    """Return what an index says of each tensor, by name."""
    entries = index.state_dict_metadata.items()
    return {name: entry for name, entry in entries if isinstance(entry, TensorStorageMetadata)}


def read_tensors(folder: Path, tensors: Mapping[str, Tensor], index: Metadata, agreement: Agreement) -> None:
    """Read tensors in place, each process its shards, however many processes wrote them.

    Args:
        folder: Of a checkpoint.
        tensors: By name; all in the index, and of the shape and type there.
        index: Of the folder.
        agreement: Of all processes, which all call this.

    Raises:
        Exception: The first error of any process, as it was there, everywhere.
    """
    try:
        dcp.load(
            dict(tensors),
            storage_reader=_Reader(folder, index),
            planner=_TensorsOnly(),
            process_group=agreement.group,
            no_dist=agreement.group is None,
        )
    except CheckpointException as error:
        raise _first_failure(error) from error


class _Writer(dcp.FileSystemWriter):
    """Seals what this process wrote."""

    def __init__(self, folder: Path) -> None:
        # nothing is copied ahead: the tensors are on the host already, and looking for their device would start CUDA
        # on the first GPU in every process
        super().__init__(folder, per_thread_copy_ahead=0)
        self.folder = folder
        self.files: dict[str, FileChecksum] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        try:
            written = super().write_data(plan, planner)
        except Exception as error:
            raise _root(error) from error
        for path in self.folder.glob(f"{plan.storage_data.prefix}*"):
            self.files[path.name] = file_checksum(path)
        return written

    def finish(self, metadata: Metadata, results: Any) -> None:
        super().finish(metadata, results)
        self.files[INDEX] = file_checksum(self.folder / INDEX)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self.save_id)  # a folder that is renamed and moved does not name its place


class _Reader(dcp.FileSystemReader):
    """Reads by an index that has been read already."""

    def __init__(self, folder: Path, index: Metadata) -> None:
        super().__init__(folder)
        self.index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.index


class _TensorsOnly(dcp.DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> NoReturn:
        raise CheckpointError(f"{read_item.dest_index.fqn} is not a tensor in this checkpoint: it is not read")


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _INDEX_CLASSES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _first_failure(error: CheckpointException) -> BaseException:
    return next(iter(error.failures.values()))[0]


def _root(error: Exception) -> Exception:
    """Return the failed operation on a file behind an error, if there is one: what torch raises after it hides it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error
