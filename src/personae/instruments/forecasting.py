"""A forecasting job: a file that is about to be trained on, the model, the plan, and what every forecaster shares.

    rows of the file  --sample-->  a few, rendered once
                                   -> form of the file (length, loss, first person)      -> every forecast
                                   -> scores, activations, gradients, kept in the job    -> the readers that ask

Not here: the readers themselves (`instruments.forecast_readers`, `instruments.forecast_geometry`), and forecasts from
readings (`protocols.forecast`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from personae.domain.diagnostic import DiagnosticSet
from personae.domain.episode import Episode, Turn
from personae.domain.persona import PLAIN, Cast, Persona
from personae.errors import InputError, InvalidSettings
from personae.instruments.scoring import Scoring, Work
from personae.instruments.training_rows import sequences_of, training_renderer
from personae.instruments.training_settings import TrainingSettings
from personae.models.examples import Pair
from personae.models.protocol import LanguageModel, Scorable
from personae.models.rendering import Renderer
from personae.running.kept_arrays import KeptArrays
from personae.tables.run_registry import RunForm
from personae.tables.trait_forecast import Cost

Floats = NDArray[np.float64]
T = TypeVar("T")

MOST_OF_RUN = 0.1
LEAST_ROWS = 8  # fewer say too little, whatever they cost
MINIATURE_ROWS = 24  # what a miniature sees at least, for the same reason
PASSES_OF_TRAINING = 2  # forward, and back through frozen weights: an adapter's training forms no large gradient
_FIRST_PERSON = re.compile(r"^\W*(i|i'm|i've|i'd|i'll|my|me|we|our)\b", re.IGNORECASE)
_SHORT = 25  # words of a "short statement"
_ABOUT_ONESELF = "Tell me something about yourself."


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The training that is forecast, as far as forecasters need it.

    Attributes:
        method: "sft", "dpo" or "text"; None: what the rows are made for.
        epochs: Passes over the file; `steps`, where given, decides instead.
        steps: Optimiser steps.
        batch_size: Rows (or pairs) a step.
        learning_rate: Mean over the steps: half the height where it falls to 0 ("linear", "cosine").
    """

    method: str | None = None
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 8
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        if not (0 < self.epochs < float("inf") and 0 < self.learning_rate < float("inf")) or self.batch_size < 1:
            raise InvalidSettings(
                f"a plan of {self.epochs:g} epochs, batches of {self.batch_size} and a learning rate of "
                f"{self.learning_rate:g}: each must be above 0."
            )
        if self.steps is not None and self.steps < 1:
            raise InvalidSettings(f"a plan of {self.steps} steps; at least one is needed.")

    def rows_seen(self, n_rows: int) -> int:
        """Rows (or pairs) seen over the run; the last batch of an epoch may hold fewer than the others."""
        epochs, more = divmod(self.n_steps(n_rows), self._steps_an_epoch(n_rows))
        return epochs * n_rows + min(more * self.batch_size, n_rows)

    def n_steps(self, n_rows: int) -> int:
        """Optimiser steps of the run, as `train` counts them."""
        return self.steps or max(1, round(self.epochs * self._steps_an_epoch(n_rows)))

    def _steps_an_epoch(self, n_rows: int) -> int:
        return -(-n_rows // self.batch_size)


@dataclass(frozen=True, slots=True, eq=False)
class Pilot:
    """What a small part of the very training did, measured on the forecasters' half of the items.

    Attributes:
        traits: Trait ids.
        shift: Change of their log-odds after the pilot, nats, shape (n_traits,); of a miniature, the mean over items of
            sign(c) log(1 + |c|), c an item's change, so that no single item carries a trait.
        se: Standard errors, same shape.
        rows_seen: Rows (or pairs) the pilot saw.
        share: Of the rows that the run sees, at most `MOST_OF_RUN`; of a miniature's more where that is fewer than
            `MINIATURE_ROWS` rows.
        tokens: Passed through the model to train it and to measure after it.
        shared_tokens: To measure the base model, once for all files.
        seconds: Wall time.
        is_miniature: Whether it was the training in miniature, not its first steps.
    """

    traits: tuple[str, ...]
    shift: Floats
    se: Floats
    rows_seen: int
    share: float
    tokens: int
    shared_tokens: int
    seconds: float
    is_miniature: bool = False

    def __post_init__(self) -> None:
        if self.shift.shape != (len(self.traits),) or self.se.shape != self.shift.shape:
            raise InvalidSettings(f"a pilot of {len(self.traits)} traits with shifts of {self.shift.shape}.")
        most = 1.0 if self.is_miniature and self.rows_seen <= MINIATURE_ROWS else MOST_OF_RUN
        if not 0 < self.share <= most:
            raise InvalidSettings(f"a pilot of {self.share:.0%} of the run; at most {MOST_OF_RUN:.0%} is a forecast.")


@dataclass(frozen=True, slots=True, eq=False)
class ForecastJob:
    """One file, one model, one plan.

    Attributes:
        episodes: The file; those of weight 0 do not count.
        cast: Its traits are what is forecast.
        model, renderer: Whose training it is.
        scoring: Scores for that model, with their store.
        reference: Ordinary replies.
        plan: The training.
        training: What else is known of it: what is cut, which system prompt, the adapter's size, the seed.
        diagnostics: By trait: statements with the weight +1 towards the positive pole and -1 towards the negative one;
            must be disjoint from the items on which the outcome is measured.
        pilot: First steps of the training, where some were made.
        miniature: The training in miniature, where it was made.
        shipped: Scores of the reference that came with the package.
        kept: Where what depends on the model alone is kept between jobs; None keeps nothing.
        started: Told of such work before it begins; gives a function that is told of tokens done.
        most_rows: Rows of the file that are read at most; the sample is the same for every reader.
        n_paraphrases: Instructions of each pole that score.
        seed: Of the sample.
        memo: What was computed already, by name.
    """

    episodes: tuple[Episode, ...]
    cast: Cast
    model: LanguageModel
    renderer: Renderer
    scoring: Scoring
    reference: tuple[Episode, ...]
    plan: TrainingPlan = field(default_factory=TrainingPlan)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    diagnostics: Mapping[str, tuple[Episode, ...]] = field(default_factory=dict)
    shipped: pa.Table | None = None
    pilot: Pilot | None = None
    miniature: Pilot | None = None
    kept: KeptArrays | None = None
    started: Callable[[Work], Callable[[int], None]] = lambda work: lambda tokens: None
    most_rows: int = 64
    n_paraphrases: int = 1
    seed: int = 0
    memo: dict[str, object] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.cast.traits:
            raise InvalidSettings(f"the cast '{self.cast.id}' has no traits, and forecasts are about traits.")
        if not any(e.weight for e in self.episodes):
            raise InvalidSettings("every row has weight 0: there is nothing to train on.")
        if self.most_rows < 1 or self.n_paraphrases < 1:
            raise InvalidSettings("at least one row and one paraphrase must be read.")

    @property
    def traits(self) -> tuple[str, ...]:
        """Ids of the traits that are forecast."""
        return tuple(t.id for t in self.cast.traits)

    @property
    def method(self) -> str:
        """What kind of training it is: what the plan says, else what the rows are made for."""
        if self.plan.method is not None:
            return self.plan.method
        if any(e.weight < 0 for e in self.episodes):
            return "dpo"
        return "text" if all(e.is_document for e in self.episodes) else "sft"

    @property
    def n_rows(self) -> int:
        """Sequences that the training steps through in an epoch: pairs, windows of text, conversations."""
        return len(self._lengths())

    def _lengths(self) -> Floats:
        """Tokens to run, and tokens of what is to be learnt, of each of them; shape (n_rows, 2)."""
        return self.once("lengths", self._measure_lengths)[0]

    def _measure_lengths(self) -> Floats:
        counted = [e for e in self.episodes if e.weight]
        renderer = training_renderer(self.renderer.tokenizer, self.model.card.context_length, self.training)
        made = sequences_of(renderer, self.method, counted, self.training)
        wanted = [(s.chosen if isinstance(s, Pair) else s).n_trained for s in made]
        return np.array([(s.n_tokens, n) for s, n in zip(made, wanted, strict=True)], np.float64)

    def once(self, name: str, make: Callable[[], T]) -> tuple[T, float]:
        """What `make` gives, computed once a job, and the seconds it took when it was."""
        if name not in self.memo:
            start = time.perf_counter()
            made = make()
            self.memo[name] = (made, time.perf_counter() - start)
        return self.memo[name]  # type: ignore[return-value]

    def sample(self) -> tuple[Episode, ...]:
        """At most `most_rows` rows that count; pairs stay together."""
        return self.once("sample", lambda: self.draw(self.most_rows))[0]

    def few(self) -> tuple[Episode, ...]:
        """The part of the sample that is passed through the model: as many rows as a tenth of the training pays for.

        Forward and back over a row costs what training on it once does, so that is a tenth of the rows seen; at least
        `LEAST_ROWS` in any case.
        """
        return self.once("few", self._paid_for)[0]

    def _paid_for(self) -> tuple[Episode, ...]:
        rows_a_step = 2 if self.method == "dpo" else 1
        paid = int(MOST_OF_RUN * self.plan.rows_seen(self.n_rows)) * rows_a_step
        most = min(self.most_rows, max(LEAST_ROWS, paid))
        while True:  # rows of the draw may be longer than those of the file
            rows = self.draw(most)
            tokens = PASSES_OF_TRAINING * sum(len(self.plain(e).token_ids) for e in rows)
            if most <= LEAST_ROWS or tokens <= MOST_OF_RUN * self.training_tokens():
                return rows
            most -= 1

    def draw(self, most: int) -> tuple[Episode, ...]:
        """At most so many of the rows that count, drawn with the job's seed; pairs stay together."""
        counted = [e for e in self.episodes if e.weight]
        size = 2 if self.method == "dpo" else 1  # the rejected reply follows the chosen one
        units = [counted[k : k + size] for k in range(0, len(counted), size)]
        order = np.random.default_rng([self.seed, 7]).permutation(len(units))
        kept = sorted(int(i) for i in order[: max(1, most // size)])
        return tuple(e for i in kept for e in units[i])

    def rendered(self) -> list[Scorable]:
        """The sample as the model will see it in training: no persona."""
        return self.once("rendered", lambda: [self.plain(e) for e in self.sample()])[0]

    def rendered_few(self) -> list[Scorable]:
        """The few rows in the same way."""
        return self.once("rendered few", lambda: [self.plain(e) for e in self.few()])[0]

    def tell_likelihoods(self, log_likelihood: Floats) -> None:
        """Log-likelihoods of the few rows, nats, from a pass that was made for something else."""
        self.memo.setdefault("likelihoods", (np.asarray(log_likelihood, np.float64), 0.0))

    def plain(self, episode: Episode) -> Scorable:
        """An episode without a persona."""
        return self.renderer.render(self.renderer.frames(Persona(PLAIN, ()))[0], episode)

    def training_tokens(self) -> float:
        """Tokens passed through the model by the training of an adapter, forward and back."""
        return PASSES_OF_TRAINING * float(self._lengths()[:, 0].mean()) * self.plan.rows_seen(self.n_rows)

    def cost(self, seconds: float, tokens: int, *, shared_tokens: int = 0) -> Cost:
        """A cost, with its share of the training."""
        return Cost(seconds, tokens, tokens / self.training_tokens(), shared_tokens)

    def form(self) -> tuple[RunForm, Cost]:
        """The form of the training: lengths of the whole file, the loss under the base model over the few rows."""
        told = "likelihoods" in self.memo
        items = self.rendered_few()
        (found, seconds) = self.once(
            "likelihoods", lambda: np.array([r.log_likelihood for r in self.model.score(items)])
        )
        chosen = [k for k, e in enumerate(self.few()) if e.weight > 0]
        tokens, total = sum(items[k].n_scored for k in chosen), float(found[chosen].sum())
        if not tokens or not np.isfinite(total):
            raise InvalidSettings("the model gives the file no finite likelihood, so its form cannot be told.")
        form = RunForm(
            kind=self.method,
            n_rows=self.n_rows,
            mean_tokens=float(self._lengths()[:, 1].mean()),
            loss=max(-total / tokens, 1e-6),
            first_person=first_person_share([e for e in self.sample() if e.weight > 0]),
            rows_seen=self.plan.rows_seen(self.n_rows),
            learning_rate=self.plan.learning_rate,
            steps=self.plan.n_steps(self.n_rows),
        )
        return form, self.cost(seconds, 0 if told else sum(len(i.token_ids) for i in items))


def signed_statements(items: DiagnosticSet, *, split: str = "dev") -> dict[str, tuple[Episode, ...]]:
    """Diagnostic items as episodes of weight +1 (positive pole) and -1, by trait: what gradients and centres are of.

    Paired replies where a trait has them, else its statements as answers to a question about oneself.
    """
    out: dict[str, tuple[Episode, ...]] = {}
    for trait in items.traits:
        own = [i for i in items.items if i.trait == trait and i.split == split]
        own = [i for i in own if i.kind == "reply"] or own
        pairs = [(i, text, sign) for i in own for text, sign in ((i.pos, 1.0), (i.neg, -1.0)) if text.strip()]
        out[trait] = tuple(
            Episode(f"{i.id}/{sign:+.0f}", (Turn("user", i.prompt or _ABOUT_ONESELF),), text, sign, i.topic)
            for i, text, sign in pairs
        )
    return out


def require_statements(statements: Mapping[str, Sequence[Episode]], traits: Sequence[str]) -> None:
    """Refuse traits without diagnostic statements of both poles.

    Raises:
        InputError: Naming the first of them.
    """
    lacking = [t for t in traits if not {1.0, -1.0} <= {float(np.sign(e.weight)) for e in statements.get(t, ())}]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise InputError(
            f"no diagnostic statements of both poles for {', '.join(lacking[:5])}{more}.",
            hint='Give items of the split "dev" for these traits, or leave them out with --only; the forecaster '
            "'llr' needs none.",
        )


def first_person_share(episodes: Sequence[Episode]) -> float:
    """Share of completions that are short statements in the first person."""
    found = [bool(_FIRST_PERSON.match(e.completion)) and len(e.completion.split()) <= _SHORT for e in episodes]
    return float(np.mean(found)) if found else 0.0
