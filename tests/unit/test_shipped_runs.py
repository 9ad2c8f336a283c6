"""The past runs that come with the package, and the sum of readings that the default forecaster is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from personae.instruments.forecast_ensemble import JOINT_PARTS, TYPICAL, combine
from personae.protocols.forecast import DEFAULT_FORECASTER, usable
from personae.running.run_registry import RegistryShelf


def test_the_shipped_runs_calibrate_the_default_forecaster(tmp_path: Path) -> None:
    registry = RegistryShelf(tmp_path).load()
    digest = registry.runs[0].model_digest
    known = usable(DEFAULT_FORECASTER, registry, digest, registry.runs[0].traits)
    assert len(known) == len(registry) >= 36
    assert len(known.families) >= 10
    assert len(RegistryShelf(tmp_path).load(shipped=False)) == 0


def test_readings_of_typical_size_count_alike() -> None:
    """By hand: each reader twice its typical size gives 2 + 2 + 2; the gradient's size is proportional to the rate."""
    rate = 1e-3
    scores = {n: np.array([2 * s * (rate if n == "gradient" else 1), 0.0]) for n, s in TYPICAL.items()}
    assert combine(scores, rate) == pytest.approx([6.0, 0.0])
    assert combine(scores, rate, JOINT_PARTS) == pytest.approx([8.0, 0.0])
