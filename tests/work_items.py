"""Functions that workers can import: workers are processes of their own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from personae.errors import InputError


def squared(x: int) -> tuple[int, int]:
    time.sleep(0.001 * (x % 3))
    return x * x, os.getpid()


def threads(_: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


def refuses_seven(x: int) -> int:
    if x == 7:
        raise InputError("seven", path="data.jsonl", line=7, hint="Take eight.")
    return x


def breaks_at_seven(x: int) -> int:
    return 1 // (x - 7)


def dies_once(item: tuple[int, str]) -> int:
    """Kill the own process the first time some item is seen."""
    x, folder = item
    mark = Path(folder) / f"died-{x}"
    if x % 3 == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def always_dies(_: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0
