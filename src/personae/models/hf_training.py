"""Fine-tuning with trl's trainers: batches by plan, our loss, checkpoints at stated steps, a state that is kept.

    Job (examples, batches, Recipe) + model -> trl SFTTrainer | DPOTrainer -> checkpoints/, adapter/ or model/

trl gives the optimiser, the schedule, clipping and the loop. What differs from its own trainers: the loss touches
only positions that predict a trained token (`models.hf_loss`), a batch runs in passes of similar length, and the
state is ours, so that nothing is pickled and a killed training goes on to the same bits.

Not here: rendering, files, and which rows are trained (`instruments.training`).
"""

from __future__ import annotations

import copy
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.errors import NumericsError
from personae.models.catalogue import ADAPTER, FULL_MODEL, SHARPENED, TRAINED
from personae.models.examples import Contrast, Example, Pair
from personae.models.hf import HFModel
from personae.models.hf_adapter import attach_lora, write_adapter, write_folder
from personae.models.hf_contrast import MEMORY_HINT, contrast_passes
from personae.models.hf_kernel import pack_frozen
from personae.models.hf_load import kernel_for
from personae.models.hf_loss import dpo_passes, mean_loss, reference_log_likelihoods, sft_passes
from personae.models.hf_memory import memory_errors
from personae.models.hf_trainers import Loop, Step, make_trainer
from personae.models.hf_training_state import KeptState, Progress, kept_key

_MEMORY_HINT = "Lower --batch-size, cut long rows with --max-tokens and --truncate, or use a smaller model."

Item = Example | Pair | Contrast
During = Callable[[object], AbstractContextManager[object]]
_LEAST_SECONDS = 10.0  # between kept states; and at least twenty times what keeping one takes
_COST = 20.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train; every field is resolved.

    Attributes:
        method: "sft" (also documents), "dpo" or "contrast".
        full: Train all weights, and no adapter.
        rank, alpha, dropout: Of the adapter.
        learning_rate: At its height.
        schedule: "linear", "cosine" or "constant", after `warm_up` steps.
        warm_up: Steps in which the learning rate rises.
        beta: Of DPO.
        seed: Of initial adapter weights and dropout.
        checkpoints: Steps after which the adapter (or model) is written.
        evaluate_every: Steps between held-out losses; 0 where nothing is held out.
        patience: Held-out losses in a row without a new best after which training stops; 0: never.
    """

    method: str
    full: bool
    rank: int
    alpha: float
    dropout: float
    learning_rate: float
    schedule: str
    warm_up: int
    beta: float
    seed: int
    checkpoints: tuple[int, ...]
    evaluate_every: int
    patience: int


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What to train on.

    Attributes:
        items: Examples, pairs or contrasts, by the recipe's method.
        batches: Places of the items of each step.
        held_out: Items that are never trained on.
        recipe: How.
        key: Names all of this and the model; a kept state of another key is not taken up.
    """

    items: Sequence[Item]
    batches: Sequence[Sequence[int]]
    held_out: Sequence[Item]
    recipe: Recipe
    key: str


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out.

    Attributes:
        result: Folder of the adapter or the model.
        checkpoints: Folders by step.
        progress: Losses and time.
        chosen_step: Step whose weights are the result.
        resumed_from: Step from which an interrupted training went on; 0 for none.
        n_trainable: Trained parameters.
        forget: Removes the kept state, which a finished training needs no more.
    """

    result: Path
    checkpoints: dict[int, Path]
    progress: Progress
    chosen_step: int
    resumed_from: int
    n_trainable: int
    forget: Callable[[], None]


def fine_tune(
    loaded: HFModel,
    job: Job,
    folder: Path,
    *,
    during: During | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Trained:
    """Train, or go on with a training that was interrupted.

    Args:
        loaded: From `hf_load.load_unpacked`; its module is changed.
        job: What to train on.
        folder: Of the run.
        during: Given the module, a context in which every training step runs: a hook that steers, say. Held-out
            losses and DPO's reference run outside it.
        on_step: Told the step just done and its loss.

    Raises:
        NumericsError: If a loss is not a number; the last good checkpoint stays.
        StorageError: If the disk fails; the last good checkpoint and the kept state stay.
        CorruptModel, InvalidSettings: See `KeptState.load`, `attach_lora`.
        OutOfMemory: If a batch does not fit.
    """
    hint = MEMORY_HINT if job.recipe.method == "contrast" else _MEMORY_HINT
    with _own_random_numbers(), memory_errors("a batch", hint=hint), warnings.catch_warnings():
        # trl's own settings use names that transformers has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return _FineTuning(loaded, job, folder, during, on_step).run()


class _FineTuning:
    """One training; what the trainer and its callback share."""

    def __init__(
        self,
        loaded: HFModel,
        job: Job,
        folder: Path,
        during: During | None,
        on_step: Callable[[int, float], None],
    ) -> None:
        recipe = job.recipe
        self.job, self.recipe, self.folder = job, recipe, folder
        self.during, self.on_step = during, on_step
        self._loaded = loaded
        self.base = loaded.module
        self._config = copy.deepcopy(self.base.config)
        if recipe.full:
            self.model: PreTrainedModel | PeftModel = self.base.requires_grad_(requires_grad=True)
        else:
            self.model = attach_lora(
                self.base, rank=recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout, seed=recipe.seed
            )
            if kernel_for(self.base) == "packed":
                pack_frozen(self.base)
        # The adapter changes nothing yet.
        self.model.eval()
        every = [*job.items, *job.held_out]
        self.reference = (
            reference_log_likelihoods(self.base, cast(Sequence[Pair], every)) if recipe.method == "dpo" else None
        )
        self.parameters: Mapping[str, torch.nn.Parameter] = {
            n: p for n, p in self.model.named_parameters() if p.requires_grad
        }
        self.state = KeptState(folder, job.key, self.parameters)
        self.at = Progress()
        self.best: dict[str, Tensor] = {}
        self.last: Step | None = None
        self._kept_at, self._keeping = time.monotonic(), 0.0

    def run(self) -> Trained:
        """Train to the end and write the result."""
        found = kept_key(self.folder)
        resumed = 0
        if found is not None:
            self.at, self.best = self.state.load(None)
            resumed = self.at.step
        if not self.done:
            try:
                make_trainer(self, self._loop(), self.job.batches[resumed:], resumed).train()
            except NumericsError as error:
                raise NumericsError(str(error), hint=self._last_good()) from error
        if self.recipe.patience and self.best:
            with torch.no_grad():
                for name, value in self.best.items():
                    self.parameters[name].copy_(value)
        chosen = self.at.best[0] if self.recipe.patience and self.best else self.at.step
        result = self.folder / (FULL_MODEL if self.recipe.full else ADAPTER)
        self.write(result)
        written = {s: p for s in self.recipe.checkpoints if (p := self.checkpoint(s)).is_dir()}
        n_trainable = sum(p.numel() for p in self.parameters.values())
        return Trained(result, written, self.at, chosen, resumed, n_trainable, self.state.forget)

    def _loop(self) -> Loop:
        r = self.recipe
        return Loop(r.method, len(self.job.batches), r.learning_rate, r.schedule, r.warm_up, r.seed)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the model."""
        return self._loaded.tokenizer.wrapped

    @property
    def done(self) -> bool:
        """Whether no step is left, because all are done or early stopping said so."""
        patience = self.recipe.patience
        return self.at.step >= len(self.job.batches) or bool(patience and self.at.worse >= patience)

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after a step."""
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def write(self, target: Path) -> None:
        """Write adapter or model as they are now."""
        base = self._loaded.card
        if isinstance(self.model, PeftModel):
            source = SHARPENED if self.recipe.method == "contrast" else TRAINED
            write_adapter(self.model, target, base=base.name, base_digest=base.digest, source=source)
            return

        def fill(made: Path) -> None:
            given, self.base.config = self.base.config, self._config
            try:
                self.base.save_pretrained(made)
            finally:
                self.base.config = given
            self._loaded.tokenizer.wrapped.save_pretrained(made)

        write_folder(target, fill, {"source": TRAINED, "base": base.name, "base_digest": base.digest})

    def loss_of(self, places: Sequence[int]) -> Iterator[Tensor]:
        """Losses that add up to a step's."""
        items = [self.job.items[k] for k in places]
        if self.recipe.method == "contrast":
            return contrast_passes(self.base, cast(Sequence[Contrast], items))
        if self.reference is None:
            return sft_passes(self.base, cast(Sequence[Example], items))
        return dpo_passes(self.base, cast(Sequence[Pair], items), self.reference[:, list(places)], self.recipe.beta)

    def steering(self) -> AbstractContextManager[object]:
        """The context of a training step."""
        return nullcontext() if self.during is None else self.during(self.base)

    def size_of(self, places: Sequence[int]) -> tuple[int, int]:
        """Tokens run and tokens trained of a batch."""
        items = [self.job.items[k] for k in places]
        return sum(i.n_tokens for i in items), sum(i.n_trained for i in items)

    def take_up(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the kept state, the optimiser's too."""
        self.at, self.best = self.state.load(optimizer)

    def restore_random_numbers(self) -> None:
        """Set the generators to where the kept state found them."""
        self.state.restore_random_numbers()

    def step_done(self, optimizer: torch.optim.Optimizer) -> None:
        """After the optimiser has moved: record, look at what was held out, keep what is to be kept."""
        step = self.last
        assert step is not None
        self.at.step += 1
        self.at.seconds += step.seconds
        every = self.recipe.evaluate_every
        held = self._held_out() if every and (self.at.step % every == 0 or self.done) else None
        self.at.rows.append(
            (self.at.step, step.loss, step.learning_rate, step.n_tokens, step.n_trained, self.at.seconds, held)
        )
        if self.at.step in self.recipe.checkpoints:
            self._require_finite_weights()
            self.write(self.checkpoint(self.at.step))
        if not self.done and time.monotonic() - self._kept_at > max(_LEAST_SECONDS, _COST * self._keeping):
            self.keep(optimizer)
        self.on_step(self.at.step, step.loss)

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the state of now."""
        self._require_finite_weights()
        begun = time.monotonic()
        self.state.save(self.at, optimizer, self.best)
        self._kept_at = time.monotonic()
        self._keeping = self._kept_at - begun

    def _held_out(self) -> float:
        self.model.eval()
        items = self.job.held_out
        if self.reference is None:
            loss = mean_loss(self.base, cast(Sequence[Example], items))
        else:
            reference = self.reference[:, len(self.job.items) :]
            with torch.no_grad():
                parts = dpo_passes(self.base, cast(Sequence[Pair], items), reference, self.recipe.beta)
                loss = sum(float(part) for part in parts)
        self.model.train()
        if not np.isfinite(loss):
            raise NumericsError(f"the held-out loss after step {self.at.step} is {loss}.")
        if loss < self.at.best[1]:
            self.at.best, self.at.worse = (self.at.step, loss), 0
            if self.recipe.patience:
                self.best = {n: p.detach().cpu().clone().contiguous() for n, p in self.parameters.items()}
        else:
            self.at.worse += 1
        return loss

    def _require_finite_weights(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters.values()):
            raise NumericsError(f"after step {self.at.step} the trained weights are no longer finite numbers.")

    def _last_good(self) -> str:
        """What is left to use, written out where only the kept state has it."""
        steps = sorted(s for s in self.recipe.checkpoints if self.checkpoint(s).is_dir())
        kept = kept_key(self.folder)
        if kept is not None and kept[1] > (steps[-1] if steps else 0):
            self.state.load(None)
            self.write(self.checkpoint(kept[1]))
            steps.append(kept[1])
        left = f"The last good checkpoint is {self.checkpoint(steps[-1])}" if steps else "No checkpoint was written yet"
        return f"{left}. Train with a lower --learning-rate (it was {self.recipe.learning_rate:g})."


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leave the global generators, which the trainer seeds, as they were."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
