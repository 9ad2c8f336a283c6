"""Persona vectors of a cast, each with its repeatability and the null battery.

    material (training, test)  ->  one reading, all layers  ->  vector from training
                                                             ->  layer by split halves of training
                                                             ->  r with the pole on test, four nulls

Recipes: "prompt" reads the last token of the prompt; "reply" the mean over sampled replies (Chen et al. 2025, arXiv
2507.21509, with a likelihood instead of a judge); "texts" the mean over given replies without any instruction.
Not here: steering (`protocols.steering`), the space of roles (`protocols.space`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Episode
from personae.domain.persona import PLAIN, Persona
from personae.errors import InvalidSettings, PersonaeError
from personae.inference.nulls import N_PERMUTATIONS, N_RANDOM, Judged, Poles, Tested, null_battery
from personae.inference.repeatability import Repeatability, repeatability
from personae.instruments.reading import Reading, question, read_all
from personae.instruments.sampling import Stage
from personae.models.activations import EditableModel, Reduce
from personae.models.protocol import SamplingPlan
from personae.models.rendering import Renderer
from personae.protocols.vector_material import (
    Contrast,
    Questions,
    prompt_readings,
    reply_readings,
    text_readings,
)
from personae.tables.activations import Activations
from personae.tables.space import QUANTILES, PersonaVector

RECIPES = ("prompt", "reply", "texts")
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ExtractSettings:
    """How vectors are made.

    Attributes:
        recipe: "prompt", "reply" or "texts".
        layers: 0-based blocks; None for all.
        max_tokens: Of a sampled reply ("reply").
        seed: Of splits, samples and nulls.
        n_permutations: Of labels.
        n_random: Random directions.
    """

    recipe: str = "prompt"
    layers: tuple[int, ...] | None = None
    max_tokens: int = 32
    seed: int = 0
    n_permutations: int = N_PERMUTATIONS
    n_random: int = N_RANDOM

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise InvalidSettings(f"--recipe is '{self.recipe}'; it can be {', '.join(RECIPES)}.")

    @property
    def reduce(self) -> Reduce:
        """Where the residual stream is read."""
        return "prompt_last" if self.recipe == "prompt" else "response_mean"


@dataclass(frozen=True, slots=True, eq=False)
class ExtractedVector:
    """A vector with what is known of it.

    Attributes:
        vector: Made from training only.
        repeatability: Of halves of training.
        separation: Correlation of projections with the pole (+1, -1) on the test, with nulls. Graded, since an AUROC
            is 1 for most directions at some layer and could beat no null.
        n_training: Items that made it.
        n_test: Items it was judged on.
        note: What a reader should know, or empty.
    """

    vector: PersonaVector
    repeatability: Repeatability
    separation: Tested
    n_training: int
    n_test: int
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Activations of one contrast."""

    contrast: Contrast
    training: Activations
    test: Activations
    note: str


class Extractor:
    """One model, asked for vectors.

    Args:
        model: Read from.
        renderer: Renders for it.
        stage: Where replies are sampled; needed for the recipe "reply" only.
        settings: How.
    """

    def __init__(
        self, model: EditableModel, renderer: Renderer, stage: Stage | None, settings: ExtractSettings
    ) -> None:
        self._model, self._renderer, self._stage, self._settings = model, renderer, stage, settings

    def read(
        self,
        contrast: Contrast,
        questions: Questions,
        *,
        texts: Sequence[Episode] = (),
        sampling: Callable[[int], Callable[[int], None]] = lambda _n: lambda _done: None,
        advance: Advance = lambda _n: None,
    ) -> Material:
        """Read everything one vector needs.

        Args:
            contrast: The two sides.
            questions: Training and test.
            texts: Given replies, for the recipe "texts".
            sampling: Called with the number of replies to sample; gives a function told of those done.
            advance: Told of items read.

        Raises:
            InvalidSettings: If too few sampled replies are recognised as of their pole.
            InputError: If given texts lack a pole.
            ContextOverflow, RenderingError: If something does not fit or cannot be written by the template.
        """
        note = contrast.note
        match self._settings.recipe:
            case "prompt":
                training, test = prompt_readings(self._renderer, contrast, questions)
            case "reply":
                assert self._stage is not None, "replies are sampled on a stage"
                plan = SamplingPlan(self._settings.max_tokens, seed=self._settings.seed)
                training, test, kept = reply_readings(
                    self._stage, self._model, self._renderer, contrast, questions, plan, sampling=sampling
                )
                note = "; ".join(filter(None, (note, kept)))
            case _:
                training, test = text_readings(self._renderer, texts, seed=self._settings.seed)
        return Material(contrast, self._read(training, advance), self._read(test, advance), note)

    def population(self, questions: Questions, *, advance: Advance = lambda _n: None) -> Activations:
        """The model without instruction, at the last token of every prompt: what percentiles refer to."""
        frame = self._renderer.frames(Persona(PLAIN, ()))[0]
        asked = (*questions.training, *questions.test)
        readings = [Reading(f"plain|{q}", PLAIN, q, frame, question(q, questions.any_reply)) for q in asked]
        return read_all(
            self._model, self._renderer, readings, reduce="prompt_last", layers=self._settings.layers, advance=advance
        )

    def _read(self, readings: Sequence[Reading], advance: Advance) -> Activations:
        return read_all(
            self._model,
            self._renderer,
            readings,
            reduce=self._settings.reduce,
            layers=self._settings.layers,
            advance=advance,
        )


def make_vectors(
    material: Sequence[Material], population: Activations | None, settings: ExtractSettings
) -> list[ExtractedVector]:
    """Vectors of the material, each judged on its own test with the others as a null.

    Args:
        material: Of one model, read in the same layers.
        population: Whose projections the percentiles of a vector are; None for none.
        settings: As it was read with.

    Raises:
        InvalidSettings: If a vector has too few questions.
    """
    made: list[tuple[Material, PersonaVector, Repeatability]] = []
    for part in material:
        vector, stable = _vector(part, settings)
        made.append((part, vector if population is None else with_population(vector, population), stable))
    return [_judged(k, made, settings) for k in range(len(made))]


def with_population(vector: PersonaVector, population: Activations) -> PersonaVector:
    """The vector with the percentiles of a population's projections; without where it is zero in a layer."""
    if not vector.values.any(axis=1).all():
        return vector
    levels = np.linspace(0, 100, QUANTILES)
    return replace(vector, quantiles=np.percentile(vector.project(population), levels, axis=0).T.astype(np.float32))


def mean_difference_vector(part: Material, recipe: str, best_layer: int) -> PersonaVector:
    """Mean under the positive pole less mean under the negative one, in training, at every layer."""
    positive = _positive(part.training)
    values = part.training.values.astype(np.float64)
    difference = values[positive].mean(axis=0) - values[~positive].mean(axis=0)
    return PersonaVector(
        part.contrast.id,
        part.training.layers,
        difference.astype(np.float32),
        part.training.norms,
        part.contrast.meaning,
        recipe,
        part.training.origin,
        best_layer,
    )


def _vector(part: Material, settings: ExtractSettings) -> tuple[PersonaVector, Repeatability]:
    rng = np.random.default_rng([settings.seed, 21])
    try:
        stable = repeatability(
            part.training.values,
            _positive(part.training),
            part.training.groups,
            rng=rng,
            n_permutations=settings.n_permutations,
        )
    except PersonaeError as error:
        raise type(error)(f"'{part.contrast.id}': {error}", hint=error.hint) from error
    best = part.training.layers[stable.best_layer]
    return mean_difference_vector(part, settings.recipe, best), stable


def _judged(
    k: int, made: Sequence[tuple[Material, PersonaVector, Repeatability]], settings: ExtractSettings
) -> ExtractedVector:
    part, vector, stable = made[k]
    rng = np.random.default_rng([settings.seed, 22, k])
    others = [v.values for i, (_, v, _) in enumerate(made) if i != k]
    tested = null_battery(
        Poles(part.training.values, _positive(part.training), part.training.groups),
        Judged(part.test.values, np.where(_positive(part.test), 1.0, -1.0)),
        "correlation",
        rng=rng,
        others=np.stack(others) if others else None,
        n_permutations=settings.n_permutations,
        n_random=settings.n_random,
    )
    return ExtractedVector(vector, stable, tested, len(part.training.items), len(part.test.items), part.note)


def _positive(activations: Activations) -> NDArray[np.bool_]:
    return np.array([label == "pos" for label in activations.labels])
