"""Progress on standard error: rate and time left, only where somebody watches.

Not here: standard output, which belongs to results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int], None]


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.speed or 0.0
        return Text(f"{speed:,.0f} {self._unit}/s" if speed >= 10 else f"{speed:.1f} {self._unit}/s")


@contextmanager
def progress_bar(label: str, total: int, *, quiet: bool, unit: str = "tokens") -> Iterator[Advance]:
    """Give a function that takes the number of units done since its last call."""
    if quiet or total == 0 or not sys.stderr.isatty():
        yield lambda amount: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        _Rate(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False, speed_estimate_period=60) as progress:
        task = progress.add_task(label, total=total)
        yield lambda amount: progress.advance(task, amount)
