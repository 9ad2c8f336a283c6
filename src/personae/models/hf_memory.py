"""What did not fit the memory, named for what it is. Not here: choosing sizes that fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from personae.errors import OutOfMemory


@contextmanager
def memory_errors(what: str, *, hint: str) -> Iterator[None]:
    """Turn a failed allocation inside into `OutOfMemory` of `what` with a hint; other errors pass unchanged."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"{what} did not fit the memory: {error}", hint=hint) from error
