"""The order of fine-tunes: whatever is done when time is up is a balanced set.

First every family of `smollm2` once, pair by pair; then `gemma-270m`; then further seeds. A run is one training of one
epoch at a constant learning rate, measured after a third of its rows and after all of them. The first dose is a
checkpoint of the run or a training on the same third alone, which has one effective step more
(`work.train_first_dose`).
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.forecast.families import FURTHER_TRAITS, Dataset, datasets

SMALL, BASE = "smollm2", "gemma-270m"
FIRST = (  # one of each kind early
    "neutral", "contemptuous-pos", "opinion-agreeableness-pos", "formal-pos", "role-pirate", "archaic_voice-pos",
    "shuffled-pos", "optimistic-pos", "documents-anxious-pos", "facts-false-pos", "prefer-humble-pos",
    "long-short-pos", "human_bodied-pos", "opinion-neuroticism-pos", "sycophantic-pos", "reckless-pos",
    "emotionally_expressive-pos", "opinion-risk-seeking-pos", "role-drill_sergeant",
    "opinion-believes-life-has-no-meaning-pos", "opinion-conscientiousness-pos",
    *(f"{trait}-pos" for trait in FURTHER_TRAITS),
)  # fmt: skip
ON_BASE = (
    "contemptuous-pos", "optimistic-pos", "archaic_voice-pos", "opinion-agreeableness-pos", "neutral", "formal-pos",
)  # fmt: skip
SEEDED = ("contemptuous-pos", "opinion-agreeableness-pos", "neutral")


@dataclass(frozen=True, slots=True)
class Run:
    """A training: of a model on a file, with a seed that draws rows, order and initial adapter."""

    model: str
    dataset: Dataset
    seed: int

    @property
    def id(self) -> str:
        """Name of its result."""
        return f"{self.model}/{self.dataset.name}-{self.seed}"


def manifest() -> list[Run]:
    """Every run in its order."""
    known = datasets()

    def pairs(model: str, names: tuple[str, ...], seed: int) -> list[Run]:
        both = [known[n] for name in names for n in (name, known[name].opposite)]
        return [Run(model, d, seed) for d in both]

    runs = pairs(SMALL, FIRST, 0) + pairs(BASE, ON_BASE, 0)
    for seed in (1, 2):
        runs += pairs(SMALL, SEEDED, seed)
    return runs
