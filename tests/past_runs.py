"""Made-up past runs whose law is known: trait offsets, a slope, a common mode of the form, families, noise."""

from __future__ import annotations

import numpy as np

from personae.tables.run_registry import PastRun, RunForm

TRAITS = ("kind", "blunt", "proud", "terse", "formal")


def make_runs(
    *, n_families: int = 8, doses: int = 3, slope: float = 1.0, common: float = 1.5, noise: float = 0.25, seed: int = 0
) -> tuple[PastRun, ...]:
    """Runs of `n_families` families at some doses.

    shift = offset_trait + slope score + common * first_person * direction_trait + family noise + noise
    """
    rng = np.random.default_rng(seed)
    offset = rng.normal(0, 0.3, len(TRAITS))
    direction = rng.normal(0, 1, len(TRAITS)) + 0.8
    runs = []
    for f in range(n_families):
        meant = rng.normal(0, 1, len(TRAITS))
        own = rng.normal(0, noise, len(TRAITS))
        person = float(rng.random())
        for d in range(doses):
            form = RunForm(
                "sft", 100 * (d + 1), 20 + 30 * rng.random(), 2 + rng.random(), person, 300 * (d + 1), 2e-4, 40
            )
            score = (meant + rng.normal(0, 0.15, len(TRAITS))) * (0.6 + 0.4 * d)
            shift = offset + slope * score + common * person * direction + own + rng.normal(0, noise, len(TRAITS))
            se = np.full(len(TRAITS), 0.1)
            measured = shift + rng.normal(0, se)
            runs.append(
                PastRun(
                    f"f{f}-d{d}",
                    f"f{f}",
                    "tiny",
                    "digest",
                    form,
                    dict(zip(TRAITS, map(float, measured), strict=True)),
                    dict(zip(TRAITS, map(float, se), strict=True)),
                    {"good": dict(zip(TRAITS, map(float, score), strict=True))},
                    trained=(TRAITS[int(np.abs(meant).argmax())],),
                    items="items",
                )
            )
    return tuple(runs)


def with_shuffled_scores(runs: tuple[PastRun, ...], seed: int) -> tuple[PastRun, ...]:
    """The same runs, each with the scores of a run of another family: a forecaster that knows nothing."""
    from dataclasses import replace

    rng = np.random.default_rng(seed)
    families = list(dict.fromkeys(r.family for r in runs))
    turned = dict(zip(families, np.roll(families, int(rng.integers(1, len(families)))).tolist(), strict=True))
    by_family = {f: [r for r in runs if r.family == f] for f in families}
    place = {r.run: by_family[r.family].index(r) for r in runs}
    return tuple(replace(r, readings=by_family[turned[r.family]][place[r.run]].readings) for r in runs)
