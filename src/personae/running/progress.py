"""Progress on standard error: a bar with rate and time left on a terminal, a line now and then elsewhere.

Not here: standard output, which belongs to results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int], None]
OnStep = Callable[[int, float], None]
_LINES = 10
_SECONDS_BETWEEN_LINES = 30.0


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.speed or 0.0
        return Text(f"{speed:,.0f} {self._unit}/s" if speed >= 10 else f"{speed:.1f} {self._unit}/s")


def _bar(unit: str) -> Progress:
    """A bar on standard error with rate and time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        _Rate(unit),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=False, speed_estimate_period=60)


class _Lines:
    """What is written where no bar can be drawn: how far it is, every half minute."""

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit

    def begin(self, total: int) -> Advance:
        """Count a work of so many units from nothing."""
        begun = told = time.monotonic()
        done = 0

        def advance(amount: int) -> None:
            nonlocal done, told
            done += amount
            now = time.monotonic()
            if now - told < _SECONDS_BETWEEN_LINES or not done:
                return
            told = now
            left = (now - begun) / done * max(0, total - done)
            share = f"{done:,} of {total:,} {self._unit}"
            print(f"{self._label}: {share}, about {left:.0f} s left", file=sys.stderr, flush=True)

        return advance


@contextmanager
def progress_bar(label: str, total: int, *, quiet: bool, unit: str = "tokens") -> Iterator[Advance]:
    """Give a function that takes the number of units done since its last call."""
    if quiet or total == 0:
        yield lambda amount: None
        return
    if not sys.stderr.isatty():
        yield _Lines(label, unit).begin(total)
        return
    with _bar(unit) as progress:
        task = progress.add_task(label, total=total)
        yield lambda amount: progress.advance(task, amount)


@contextmanager
def parts_bar(label: str, n_parts: int, *, quiet: bool, unit: str = "tokens") -> Iterator[Callable[[int], Advance]]:
    """Give a function that begins a part of so many units and gives its own `Advance`; one bar for all parts.

    The parts to come are taken to be as large as the one at hand.
    """
    if quiet:
        yield lambda units: lambda amount: None
        return
    if not sys.stderr.isatty():
        yield _Lines(label, unit).begin
        return
    with _bar(unit) as progress:
        task = progress.add_task(label, total=None)
        begun = [0, 0]  # parts, units of those before this one

        def begin(units: int) -> Advance:
            progress.update(task, total=begun[1] + units * (n_parts - begun[0]), completed=begun[1])
            begun[0] += 1
            begun[1] += units
            return lambda amount: progress.advance(task, amount)

        yield begin


@contextmanager
def training_progress(label: str, total: int, *, quiet: bool, unit: str = "nats an answer") -> Iterator[OnStep]:
    """Give a function that takes the step just done and its loss; a bar on a terminal, some lines elsewhere."""
    if quiet:
        yield lambda step, loss: None
        return
    if not sys.stderr.isatty():
        yield _printer(label, total, unit)
        return
    loss_column = TextColumn("loss {task.fields[loss]:.4f} " + unit)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), loss_column, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=False, speed_estimate_period=60) as progress:
        task = progress.add_task(label, total=total, loss=float("nan"))
        smooth = _Smooth(total)
        yield lambda step, loss: progress.update(task, completed=step, loss=smooth(loss))


def _printer(label: str, total: int, unit: str) -> OnStep:
    """Ten lines over a training, each with the loss and about how long it will take."""
    smooth, begun, first = _Smooth(total), time.monotonic(), [-1]

    def told(step: int, loss: float) -> None:
        first[0] = step - 1 if first[0] < 0 else first[0]
        mean = smooth(loss)
        if step % max(1, total // _LINES) == 0 or step == total:
            left = (time.monotonic() - begun) / (step - first[0]) * (total - step)
            print(
                f"{label}: step {step:,} of {total:,}, loss {mean:.4f} {unit}, {left:.0f} s left",
                file=sys.stderr,
            )

    return told


class _Smooth:
    """A running mean over about fifty steps, or a tenth of a shorter training."""

    def __init__(self, total: int) -> None:
        self._value: float | None = None
        self._share = min(1.0, max(0.02, 10 / total))

    def __call__(self, value: float) -> float:
        self._value = value if self._value is None else (1 - self._share) * self._value + self._share * value
        return self._value
