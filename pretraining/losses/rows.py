"""How many rows of a wide tensor are worked on at once."""

from __future__ import annotations

import torch

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**22}
"""Float32 values of a temporary. What comes out of one elementwise pass should still be in the cache for the next:
1 MiB is half the second-level cache of a server's core, 16 MiB a third of an H100's (50 MB), which smaller pieces would
not keep busy."""


def rows_per_chunk(elements: int, device: torch.device) -> int:
    """Return how many rows of ``elements`` each make a chunk on a device; at least one."""
    return max(1, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"]) // max(1, elements))
