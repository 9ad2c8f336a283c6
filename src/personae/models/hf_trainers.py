"""trl's trainers, told what a step is by somebody else.

    make_trainer(training, ...) -> SFTTrainer or DPOTrainer whose step runs `training.loss_of(places)` in passes

Their own data preparation, checkpoints, logging and telemetry are switched off. Not here: losses
(`models.hf_loss`), what happens after a step (`models.hf_training`).
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# trl tells its makers of every trainer that is built, unless this is set before the hub's library is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from personae.errors import NumericsError

_CLIP = 1.0  # largest norm of a step's gradient


@dataclass(frozen=True, slots=True)
class Step:
    """What a step cost.

    Attributes:
        loss: Nats a trained token, or DPO's loss a pair.
        learning_rate: Of the step.
        n_tokens: Tokens run, padding not counted.
        n_trained: Tokens in the loss.
        seconds: Wall time.
    """

    loss: float
    learning_rate: float
    n_tokens: int
    n_trained: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Loop:
    """What trl needs to know of a training; see `hf_training.Recipe`."""

    method: str
    n_steps: int
    learning_rate: float
    schedule: str
    warm_up: int
    seed: int


class Training(Protocol):
    """The side of a training that the trainer sees."""

    folder: Path
    base: PreTrainedModel
    model: PreTrainedModel | PeftModel
    parameters: Mapping[str, torch.nn.Parameter]
    last: Step | None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the model."""
        ...

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        ...

    def size_of(self, places: Sequence[int]) -> tuple[int, int]:
        """Tokens and trained tokens of a batch."""
        ...

    def loss_of(self, places: Sequence[int]) -> Iterator[Tensor]:
        """Losses that add up to a step's."""
        ...

    def steering(self) -> AbstractContextManager[object]:
        """The context of a step."""
        ...

    def take_up(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the kept state."""
        ...

    def restore_random_numbers(self) -> None:
        """Set the generators to where they stood; later than the rest, since a data loader draws from them."""
        ...

    def step_done(self, optimizer: torch.optim.Optimizer) -> None:
        """After the optimiser has moved; `last` is the step."""
        ...


def make_trainer(
    training: Training, loop: Loop, batches: Sequence[Sequence[int]], done: int
) -> SFTTrainer | DPOTrainer:
    """A trainer for the batches that are left.

    Args:
        training: What a step is, and what follows it.
        loop: Settings.
        batches: Places of the examples of each step that is left.
        done: Steps done before; optimiser and schedule go on from there.
    """
    # One row a batch: the order is ours.
    rows = Dataset.from_dict({"places": [list(b) for b in batches]})
    shared: dict[str, Any] = {
        "output_dir": str(training.folder / "training"),
        "per_device_train_batch_size": 1,
        "max_steps": loop.n_steps,
        "learning_rate": loop.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if loop.schedule == "constant" else loop.schedule,
        "warmup_steps": loop.warm_up,
        "weight_decay": 0.0,
        "max_grad_norm": _CLIP,
        "optim": "adamw_torch",
        "seed": loop.seed,
        "use_cpu": training.base.device.type == "cpu",
        # Precision is that of the loaded weights; recomputing activations would only cost time at these sizes.
        "bf16": False,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    trainer = _DPO if loop.method == "dpo" else _SFT
    settings: Any
    if loop.method == "dpo":
        settings = DPOConfig(**shared, precompute_ref_log_probs=True)
    else:
        settings = SFTConfig(**shared, dataset_kwargs={"skip_prepare_dataset": True})
    settings._n_gpu = min(settings.n_gpu, 1)  # one process, one card
    made = trainer(
        model=training.model,
        args=settings,
        train_dataset=rows,
        processing_class=copy.deepcopy(training.tokenizer),  # it is given a padding token
        data_collator=_places,
        callbacks=[_Steps(training, done)],
    )
    made.remove_callback(PrinterCallback)  # which writes to standard output
    made.training = training
    return made


def _places(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    return {"places": torch.tensor(rows[0]["places"])}


class _OwnSteps:
    """A step in passes, each sent backwards before the next; mixed into a trainer."""

    training: Training

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run one batch forwards and backwards."""
        places = [int(k) for k in inputs["places"]]
        begun = time.perf_counter()
        model.train()
        trainer: Any = self
        loss = torch.zeros((), device=self.training.base.device)
        with self.training.steering():
            for part in self.training.loss_of(places):
                trainer.accelerator.backward(part)
                loss += part.detach()
        rate = trainer.optimizer.param_groups[0]["lr"]
        value = float(loss)
        if not torch.isfinite(loss):
            raise NumericsError(f"the loss of step {trainer.state.global_step + 1} is {value}.")
        self.training.last = Step(value, rate, *self.training.size_of(places), time.perf_counter() - begun)
        return loss

    def floating_point_ops(self, inputs: object) -> int:
        """Not counted."""
        return 0


class _SFT(_OwnSteps, SFTTrainer):
    """Supervised fine-tuning."""


class _DPO(_OwnSteps, DPOTrainer):
    """Direct preference optimisation; the reference is computed before training, by us."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset


class _Steps(TrainerCallback):
    """Takes up a kept state before the first step, checks gradients, and hands every step to the training."""

    def __init__(self, training: Training, done: int) -> None:
        self._training, self._done = training, done

    def _train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Restore optimiser and schedule."""
        if not self._done:
            return
        optimizer, scheduler = _plain(given["optimizer"]), _plain_schedule(given["lr_scheduler"])
        self._training.take_up(optimizer)
        state.global_step = self._done
        scheduler.last_epoch = self._done
        scheduler._last_lr = [b * f(self._done) for b, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate

    def _step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Restore random numbers before the first step."""
        if self._done and state.global_step == self._done:
            self._training.restore_random_numbers()

    def _pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Stop before a gradient that is not a number reaches the weights."""
        if any(p.grad is not None and not torch.isfinite(p.grad).all() for p in self._training.parameters.values()):
            raise NumericsError(f"the gradient of step {state.global_step + 1} is not a finite number.")

    def _step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Hand the step on; stop when the training says so."""
        self._training.step_done(_plain(given["optimizer"]))
        if self._training.done:
            control.should_training_stop = True

    # transformers calls them by these names, with more arguments than anybody needs.
    on_train_begin, on_step_begin = _train_begin, _step_begin
    on_pre_optimizer_step, on_step_end = _pre_optimizer_step, _step_end


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _plain_schedule(schedule: Any) -> Any:
    return getattr(schedule, "scheduler", schedule)
