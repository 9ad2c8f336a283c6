"""Laws of reading and editing the residual stream, for models that can.

    reading      together, alone and after a shared prefix give the same states; means are means of tokens
    null edits   steering by 0 and a cap below everything keep every bit; so does the model itself, during a view,
                 after it, and after an exception in it
    edits        steering moves its own layer by coefficient x vector and no lower one; a cap's floor holds at every
                 position; under edits a shared prefix still changes nothing

Gaps of states are relative to their norm. Run by `models.laws`. Not here: the other laws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from personae.models.activations import Capping, EditableModel, Floats32, Steering
from personae.models.protocol import LanguageModel, SamplingPlan, Scorable

Law = tuple[str, str, float, Callable[[], float]]
_NEVER = -1e30  # a floor below every projection


def edit_laws(model: EditableModel, items: Sequence[Scorable]) -> tuple[Law, ...]:
    """Name, what is compared, tolerance, and the function that measures the gap."""
    few, tolerance = list(items[:6]), model.card.tolerance
    return (
        ("reading", "states together, alone, after a prefix; relative", tolerance, lambda: _reading(model, few)),
        (
            "null edits",
            "bits changed by edits of no size, or left behind (1) or none (0)",
            0.0,
            lambda: _null(model, few),
        ),
        (
            "edits",
            "a layer moves as told, a floor holds, prefixes agree; relative",
            tolerance,
            lambda: _edits(model, few),
        ),
    )


def _reading(model: EditableModel, items: list[Scorable]) -> float:
    whole = [Scorable(i.token_ids, 1) for i in items]
    every = model.read(whole, reduce="tokens")  # of position p at p - 1
    means = [t[:, i.start - 1 :].mean(axis=1) for t, i in zip(every, items, strict=True)]
    gaps = [_relative(a, b) for a, b in zip(model.read(items), means, strict=True)]
    alone = [model.read([Scorable(i.token_ids, i.start)])[0] for i in items]
    gaps += [_relative(a, b) for a, b in zip(alone, means, strict=True)]
    later = [(i, t) for i, t in zip(items, every, strict=True) if i.start > 1]
    lasts = model.read([i for i, _ in later], reduce="prompt_last")
    gaps += [_relative(a, t[:, i.start - 2]) for a, (i, t) in zip(lasts, later, strict=True)]
    top = model.n_layers - 1
    gaps += [_relative(a[::-1], b[[0, top]]) for a, b in zip(model.read(items, layers=[top, 0]), means, strict=True)]
    return max(gaps)


def _null(model: EditableModel, items: list[Scorable]) -> float:
    layer = (model.n_layers - 1) // 2
    vector = _direction(model, items, layer)
    before = _bits(model, items)
    with model.steered([Steering(layer, vector, 0.0), Capping(layer, vector, _NEVER)]) as view:
        same = _bits(view, items) == before
    with model.steered([Steering(layer, vector, 1.0)]) as view:
        moved = _bits(view, items)
        same &= _bits(model, items) == before
    same &= _bits(model, items) == before
    with suppress(_Planned), model.steered([Steering(layer, vector, 1.0)]):
        raise _Planned
    same &= _bits(model, items) == before
    return 0.0 if same and moved != before else 1.0


def _edits(model: EditableModel, items: list[Scorable]) -> float:
    # Low down, where keys and values of a prefix carry the edit on; and at the top, with layers below to stay put.
    layers = {(model.n_layers - 1) // 2, model.n_layers - 1}
    return max(_edits_at(model, items, layer) for layer in layers)


def _edits_at(model: EditableModel, items: list[Scorable], layer: int) -> float:
    vector = _direction(model, items, layer)
    unit = vector / np.linalg.norm(vector)
    whole = [Scorable(i.token_ids, 1) for i in items]
    plain = model.read(whole, reduce="tokens")
    model.score(items)  # a prefix of the model's own that the view must not find
    with model.steered([Steering(layer, vector, 0.5)]) as view:
        steered = view.read(whole, reduce="tokens")
        gaps = [_relative(a[layer], b[layer] + 0.5 * vector) for a, b in zip(steered, plain, strict=True)]
        gaps += [0.0 if np.array_equal(a[:layer], b[:layer]) else np.inf for a, b in zip(steered, plain, strict=True)]
        alone = view.score([Scorable(i.token_ids, i.start) for i in items])
        pairs = zip(view.score(items), alone, strict=True)
        gaps += [float(np.abs(a.log_probs - b.log_probs).max()) for a, b in pairs]
        gaps.append(_sampled(view, items[0]))
    floor = float(np.median(np.concatenate([p[layer] @ unit for p in plain])))
    with model.steered([Capping(layer, vector, floor)]) as view:
        for a, b in zip(view.read(whole, reduce="tokens"), plain, strict=True):
            gaps.append(float((floor - a[layer] @ unit).max() / np.linalg.norm(b[layer], axis=-1).mean()))
            above = b[layer] @ unit > floor + 1e-3 * abs(floor)
            gaps.append(0.0 if np.array_equal(a[layer][above], b[layer][above]) else np.inf)
    return max(gaps)


def _sampled(view: LanguageModel, item: Scorable) -> float:
    """Log-probabilities while sampling under edits against those scored."""
    prompt = item.token_ids[: item.start]
    made = view.sample([prompt], SamplingPlan(max_tokens=6, seed=1))[0]
    scored = view.score([Scorable((*prompt, *made.token_ids), len(prompt))])[0]
    return float(np.abs(scored.log_probs - made.log_probs).max())


def _direction(model: EditableModel, items: list[Scorable], layer: int) -> Floats32:
    """A direction at a layer, as long as the states are."""
    size = np.linalg.norm(model.read(items[:1], layers=[layer])[0][0])
    drawn = np.random.default_rng(0).normal(size=model.d_model)
    return (drawn / np.linalg.norm(drawn) * size).astype(np.float32)


def _bits(model: LanguageModel, items: list[Scorable]) -> list[bytes]:
    return [r.log_probs.tobytes() for r in model.score(items)]


def _relative(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Largest difference of two states, in norms of the second; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    gap = np.linalg.norm(a - b, axis=-1) / np.maximum(np.linalg.norm(b, axis=-1), 1e-30)
    return float(np.nan_to_num(gap.max(), nan=np.inf))


class _Planned(Exception):
    """Raised inside a view to see what an exception leaves behind."""
