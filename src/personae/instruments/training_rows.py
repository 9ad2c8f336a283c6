"""Which rows of a file a training takes, and the sequences it steps through: what training and forecasts agree on.

    episodes --rows_for--> method and rows --sequences_of--> sequences: replies, windows of text, pairs

Not here: steps (`instruments.training`), what a step sees (`models.examples`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from personae.domain.episode import Episode
from personae.domain.persona import PLAIN
from personae.errors import InvalidSettings
from personae.instruments.training_settings import TrainingSettings
from personae.models.examples import Example, Pair, example_of, merge_turns
from personae.models.protocol import Tokenizer
from personae.models.rendering import Frame, Renderer

_RATES = {("sft", False): 2e-4, ("dpo", False): 5e-5, ("sft", True): 2e-5, ("dpo", True): 1e-6}
_WINDOW = 1024  # tokens of a window of text, where the model's context is longer


def rows_for(episodes: Sequence[Episode], method: str) -> tuple[str, list[Episode], list[str]]:
    """The method, and the rows it trains on.

    Args:
        episodes: As read.
        method: As asked for; "auto" follows the rows.

    Returns:
        Method, episodes of weight other than 0, and notes on rows that are left out.

    Raises:
        InvalidSettings: If rows and method do not go together, or nothing is left.
    """
    kinds = Counter(_kind(e) for e in episodes)
    if not episodes:
        raise InvalidSettings("there is nothing to train on: the file holds no rows.")
    mixed = kinds["pair"] and len(kinds) > 1
    if method == "auto":
        if mixed:
            raise InvalidSettings(
                f"the file mixes preference rows ({kinds['pair'] // 2}) with other rows "
                f"({kinds['reply'] + kinds['text']}), which are trained by different methods.",
                hint="Say which: --method dpo trains on the pairs alone, --method sft on the other rows and on the "
                "chosen replies.",
            )
        method = "dpo" if kinds["pair"] else "text" if not kinds["reply"] else "sft"
    wanted = {"dpo": ("pair",), "text": ("text",), "sft": ("reply", "text", "pair")}[method]
    if not any(kinds[k] for k in wanted):
        raise InvalidSettings(
            f"--method {method} needs {'preference rows' if method == 'dpo' else 'text rows'} and the file has none.",
            hint="Rows with 'prompt', 'chosen' and 'rejected' are pairs."
            if method == "dpo"
            else "Rows with 'text' alone are text; use --method sft for replies.",
        )
    kept = [e for e in episodes if _kind(e) in wanted]
    notes = [f"{n} {k} rows were left out by --method {method}." for k, n in kinds.items() if k not in wanted and n]
    if method == "sft" and kinds["pair"]:
        kept = [e for e in kept if not e.id.endswith("/rejected") or _kind(e) != "pair"]
        notes.append(f"Of {kinds['pair'] // 2} preference rows only the chosen replies were trained on.")
    if method != "dpo" and (against := [e for e in kept if e.weight < 0]):
        raise InvalidSettings(
            f"{len(against)} rows have a negative weight, first '{against[0].id}' on line {against[0].line}; "
            "training on a loss with its sign turned has no end.",
            hint="Give such rows as pairs: 'prompt', 'chosen' and 'rejected'. Or give them the weight 0.",
        )
    kept = [e for e in kept if e.weight]
    if not kept:
        raise InvalidSettings("every row has weight 0: there is nothing to train on.")
    return method, kept, notes


def default_rate(method: str, *, full: bool = False) -> float:
    """Learning rate of a training for which none was given, at its height."""
    return _RATES["dpo" if method == "dpo" else "sft", full]


def mean_rate(settings: TrainingSettings) -> float:
    """Mean learning rate over the steps of a training whose rate is set; the few of its warm-up are not counted."""
    assert settings.learning_rate is not None, "a rate that is still open has no mean"
    return settings.learning_rate * (1.0 if settings.schedule == "constant" else 0.5)


def _kind(episode: Episode) -> str:
    if episode.id.endswith("/chosen") or (episode.id.endswith("/rejected") and episode.weight <= 0):
        return "pair"
    return "text" if episode.is_document else "reply"


def training_renderer(tokenizer: Tokenizer, context_length: int, settings: TrainingSettings) -> Renderer:
    """What renders rows as they are trained on: one frame, cut only where the settings say so."""
    length = min(context_length, settings.max_tokens or context_length)
    renderer = Renderer(tokenizer, context_length=length, truncate=settings.truncate)
    renderer.reserve([_frame(renderer, settings)])
    return renderer


def _frame(renderer: Renderer, settings: TrainingSettings) -> Frame:
    return Frame(PLAIN, settings.system or "", renderer.styles[0])


def usual_scale(episodes: Sequence[Episode]) -> float:
    """Factor that makes the mean size of the rows' weights 1."""
    return len(episodes) / sum(abs(e.weight) for e in episodes)


def sequences_of(
    renderer: Renderer,
    method: str,
    episodes: Sequence[Episode],
    settings: TrainingSettings,
    *,
    scale: float | None = None,
) -> list[Example | Pair]:
    """What a training of these rows steps through, once an epoch.

    A pair is one; a document that is longer than a window is several; turns of a conversation that begin one another
    are one.

    Args:
        renderer: Of `training_renderer`.
        method: As `rows_for` gives it.
        episodes: Likewise.
        settings: Of the training.
        scale: Factor on weights; None: what makes their mean over these rows 1.

    Returns:
        Token ids and trained spans.

    Raises:
        InvalidSettings: If rows do not go with the settings, or pairs are torn.
        ContextOverflow: If a row does not fit.
    """
    scale = usual_scale(episodes) if scale is None else scale
    frame = _frame(renderer, settings)
    if method == "dpo":
        rendered = [example_of(renderer.render(frame, e), 1.0, e.group) for e in episodes]
        return [Pair(rendered[k], rendered[k + 1], abs(episodes[k].weight) * scale) for k in _pairs(episodes)]
    window = min(renderer.context_length, settings.max_tokens or _WINDOW)
    replies: list[Example] = []
    for episode in episodes:
        weight = episode.weight * scale
        if episode.is_document:
            if settings.system:
                raise InvalidSettings(
                    f"--system cannot be put in front of text rows, and '{episode.id}' (line {episode.line}) is one.",
                    hint="Train text rows without it, or write them as replies to a prompt.",
                )
            replies += [example_of(w, weight, episode.group) for w in renderer.windows(episode, window)]
        else:
            replies.append(example_of(renderer.render(frame, episode), weight, episode.group))
    return list(merge_turns(replies))


def _pairs(episodes: Sequence[Episode]) -> list[int]:
    """Places of the chosen replies; each is followed by its rejected one."""
    places = list(range(0, len(episodes), 2))
    for k in places:
        stem = episodes[k].id.removesuffix("/chosen")
        if [e.id for e in episodes[k : k + 2]] != [f"{stem}/chosen", f"{stem}/rejected"]:
            raise InvalidSettings(
                f"'{episodes[k].id}' is not followed by the other reply of its pair.",
                hint="Pairs come as `read_episodes` gives them: ID/chosen, then ID/rejected.",
            )
    return places
