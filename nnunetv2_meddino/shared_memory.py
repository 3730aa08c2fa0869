"""Shared memory, through which worker processes hand over what they have made."""

from __future__ import annotations

import shutil
from pathlib import Path

from nnunetv2_meddino.errors import DataError

SHARED_MEMORY = Path("/dev/shm")


def check_shared_memory(needed: int) -> None:
    """Refuse to start workers whose buffers do not fit: the kernel would kill them at some later batch.

    Args:
        needed: Bytes.

    Raises:
        DataError: Less is free.
    """
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else needed
    if free < needed:
        raise DataError(
            f"the workers' buffers need {needed / 2**20:.0f} MiB of shared memory, {SHARED_MEMORY} has "
            f"{free / 2**20:.0f}: use fewer workers or a smaller batch, or give the container more "
            "(docker run --shm-size)"
        )
