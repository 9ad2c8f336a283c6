"""How to train, checked; and what a training was.

Not here: training (`instruments.training`), reading files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from personae.errors import InvalidSettings

METHODS = ("auto", "sft", "dpo", "text")
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train.

    Attributes:
        method: "sft", "dpo", "text" (continued pre-training), or "auto": what the rows are made for.
        full: Train all weights instead of an adapter.
        epochs: Passes over the data; `steps`, where given, decides instead.
        steps: Optimiser steps.
        learning_rate: At its height; None: by method (2e-4 for an adapter, 5e-5 with DPO, 2e-5 and 1e-6 for --full).
        schedule: What the rate does after the warm-up: "linear" (to 0), "cosine" or "constant".
        rank: Of the adapter.
        alpha: The adapter's update is scaled by alpha / rank; None: twice the rank.
        dropout: Of the adapter's inputs.
        batch_size: Rows (or pairs) a step.
        max_tokens: Most tokens of one sequence; None: the model's context, and 1024 for a window of text.
        truncate: Cut replies that do not fit instead of refusing them.
        system: System prompt in front of every row while training.
        mix_ratio: Rows of the second file for one of the first.
        checkpoints: Steps after which the adapter is written.
        held_out: Share of conversations that are not trained on and give a held-out loss.
        stop_early: Stop when the held-out loss no longer falls, and keep the best weights.
        patience: Held-out losses without a new best after which it stops.
        beta: Of DPO.
        seed: Of order, held-out share, initial weights and dropout.
    """

    method: str = "auto"
    full: bool = False
    epochs: float = 1.0
    steps: int | None = None
    learning_rate: float | None = None
    schedule: str = "linear"
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    batch_size: int = 8
    max_tokens: int | None = None
    truncate: bool = False
    system: str | None = None
    mix_ratio: float = 1.0
    checkpoints: tuple[int, ...] = ()
    held_out: float = 0.0
    stop_early: bool = False
    patience: int = 3
    beta: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, holds, range_ in (
            ("method", self.method in METHODS, f"one of {', '.join(METHODS)}"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("epochs", 0 < self.epochs < float("inf"), "above 0"),
            ("steps", self.steps is None or self.steps >= 1, "at least 1"),
            ("learning-rate", self.learning_rate is None or 0 < self.learning_rate < float("inf"), "above 0"),
            ("rank", self.rank >= 1, "at least 1"),
            ("alpha", self.alpha is None or 0 < self.alpha < float("inf"), "above 0"),
            ("dropout", 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("batch-size", self.batch_size >= 1, "at least 1"),
            ("max-tokens", self.max_tokens is None or self.max_tokens >= 2, "at least 2"),
            ("mix-ratio", 0 < self.mix_ratio < float("inf"), "above 0"),
            ("checkpoints", all(s >= 1 for s in self.checkpoints), "steps of at least 1"),
            ("held-out", 0 <= self.held_out < 1, "at least 0 and below 1"),
            ("patience", self.patience >= 1, "at least 1"),
            ("beta", 0 < self.beta < float("inf"), "above 0"),
        ):
            if not holds:
                value = getattr(self, name.replace("-", "_"))
                raise InvalidSettings(f"--{name} is {value}; it must be {range_}.")


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a training was and what came out.

    Attributes:
        model: Name of the model that was trained.
        result: Folder of the adapter, or of the model with `full`.
        use: The model name under which the result is used.
        method: "sft", "dpo" or "text".
        full: Whether all weights were trained.
        n_steps: Steps done.
        chosen_step: Step whose weights are the result; an earlier one where training stopped early.
        n_rows: Rows (or pairs) trained on; windows of long texts each count, conversations whose turns nest count once.
        n_held_out: Sequences held out.
        n_tokens: Tokens run over all steps, padding not counted.
        n_trained: Tokens in the loss over all steps.
        n_parameters: Trained parameters.
        first_loss, last_loss: Mean loss of the first and last tenth of the steps; nats a token (DPO: a pair).
        held_out_first, held_out_last: First and chosen held-out loss; None where nothing was held out.
        seconds: Time of the steps.
        resumed_from: Step from which an interrupted training went on; 0 for none.
        checkpoints: Folders by step.
        base_digest: Of the weights that were trained on.
        settings: As used, every default resolved.
        notes: What a reader should know.
    """

    model: str
    result: str
    use: str
    method: str
    full: bool
    n_steps: int
    chosen_step: int
    n_rows: int
    n_held_out: int
    n_tokens: int
    n_trained: int
    n_parameters: int
    first_loss: float
    last_loss: float
    held_out_first: float | None
    held_out_last: float | None
    seconds: float
    resumed_from: int
    checkpoints: dict[int, str]
    base_digest: str
    settings: dict[str, object]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain values, for `run.json` and `--json`."""
        return {**asdict(self), "checkpoints": {str(k): v for k, v in self.checkpoints.items()}}
