"""The state of a run, taken apart into tensors and plain values, and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nnunetv2_meddino.errors import CheckpointError

OVERHEAD = 4096
"""Bytes a tensor takes in a checkpoint besides its elements, at most, in each process: headers and names."""

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Leaf:
    """A value in a nested state."""

    name: str
    """Keys on the way to it, joined by dots, as DCP names it."""
    container: Any
    """What holds it, a mapping or a list."""
    key: Any
    """Its key or index there."""
    value: Any
    """A tensor, a plain value, or a tuple of plain values."""


class FlatState:
    """All leaves of a nested state of mappings and lists.

    Attributes:
        tensors: By name.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        """Take a state apart.

        Raises:
            CheckpointError: Two leaves have the same name, or one is neither a tensor nor plain.
        """
        self._parts = tuple(state)
        self.tensors: dict[str, Tensor] = {}
        self._values: dict[str, Leaf] = {}
        for leaf in _leaves(state):
            if leaf.name in self.tensors or leaf.name in self._values:
                raise CheckpointError(f"two entries of the training state are called {leaf.name!r}: rename one")
            if isinstance(leaf.value, Tensor):
                self.tensors[leaf.name] = leaf.value
            elif _is_plain(leaf.value):
                self._values[leaf.name] = leaf
            else:
                raise CheckpointError(
                    f"{leaf.name} of the training state is a {type(leaf.value).__name__}: a checkpoint holds tensors, "
                    "numbers, words, truth values, None, and mappings, lists and tuples of them"
                )

    @property
    def values(self) -> dict[str, Any]:
        """Plain values by name, as JSON holds them."""
        return {name: leaf.value for name, leaf in self._values.items()}

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Replace the plain values in the nested state itself; ``values`` holds at least their names."""
        for name, leaf in self._values.items():
            value = values[name]
            leaf.container[leaf.key] = tuple(value) if isinstance(value, list) else value

    def misfits(self, tensors: Mapping[str, TensorStorageMetadata], values: Mapping[str, Any]) -> list[str]:
        """Return in words where a saved state differs in names, shapes and types.

        Args:
            tensors: Saved ones.
            values: Saved ones.
        """
        asked = self.tensors.keys() | self._values.keys()
        there = {name for name in (*tensors, *values) if self._has_part(name)}
        found = [f"{name} is not in the checkpoint" for name in sorted(asked - there)]
        found += [f"{name} is only in the checkpoint" for name in sorted(there - asked)]
        for name in sorted(asked & there):
            if (name in self.tensors) != (name in tensors):
                found.append(f"{name} is a tensor in only one of them")
            elif name in tensors:
                found += _difference(name, self.tensors[name], tensors[name])
        return found

    def bytes_on_disk(self, world_size: int) -> int:
        """Return how much room the tensors take at most; a sharded one counts once, however many hold it."""
        elements = sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())
        return elements + OVERHEAD * (len(self.tensors) + 1) * world_size

    def _has_part(self, name: str) -> bool:
        return any(name == part or name.startswith(f"{part}.") for part in self._parts)

    def staged(self) -> dict[str, Tensor]:
        """Return copies of the tensors on the host; shards stay shards. The originals may change at once."""
        copies = {name: _host_copy(tensor.detach()) for name, tensor in self.tensors.items()}
        if any(tensor.device.type == "cuda" for tensor in self.tensors.values()):
            torch.cuda.synchronize()  # the copies were only queued
        return copies


def _host_copy(tensor: Tensor) -> Tensor:
    # pinned memory takes 25 GB/s and the copies of all tensors are queued at once; torch keeps it for the next save
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor, non_blocking=True)


def _difference(name: str, tensor: Tensor, saved: TensorStorageMetadata) -> list[str]:
    here, there = (tuple(tensor.shape), tensor.dtype), (tuple(saved.size), saved.properties.dtype)
    if here != there:
        return [f"{name} is {there[0]} {there[1]} in the checkpoint, {here[0]} {here[1]} here"]
    return [f"{name} is on the meta device: it has nothing to be loaded into"] if tensor.is_meta else []


def _leaves(state: Any, prefix: str = "") -> Iterator[Leaf]:
    for key, value in state.items() if isinstance(state, Mapping) else enumerate(state):
        name = f"{prefix}{key}"
        if isinstance(value, (Mapping, list)):
            yield from _leaves(value, f"{name}.")
        else:
            yield Leaf(name, state, key, value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(part, _PLAIN) for part in value))
