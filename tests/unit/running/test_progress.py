"""Where no bar can be drawn a line now and then says how far it is; results' output stays clean."""

from __future__ import annotations

import pytest

from personae.running import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute_where_nobody_watches(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("Scoring", 1000, quiet=False) as advance:
        for _ in range(10):
            clock[0] += 10
            advance(50)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Scoring: 150 of 1,000 tokens, about 170 s left",
        "Scoring: 300 of 1,000 tokens, about 140 s left",
        "Scoring: 450 of 1,000 tokens, about 110 s left",
    ]


def test_each_part_counts_its_own_work(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.parts_bar("Scoring", 2, quiet=False) as begin:
        for total in (100, 200):
            advance = begin(total)
            clock[0] += 40
            advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "Scoring: 100 of 100 tokens, about 0 s left",
        "Scoring: 100 of 200 tokens, about 40 s left",
    ]


def test_quiet_and_quick_work_say_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("Scoring", 10, quiet=True) as advance:
        clock[0] += 100
        advance(5)
    with progress.progress_bar("Scoring", 10, quiet=False) as advance:
        clock[0] += 29
        advance(10)
    assert capsys.readouterr() == ("", "")
