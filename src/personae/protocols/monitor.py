"""Watching conversations: projections of every reply, and of its tokens, on persona vectors.

    z = (projection - mean of ordinary replies) / their standard deviation,      alarm: z > threshold

The threshold is the normal quantile of the false-alarm rate asked for; how often ordinary replies pass the threshold
set by the other topics is reported beside it. Replies are read without any instruction, as a monitor would meet them.
Not here: where vectors come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from personae.domain.episode import Episode
from personae.domain.persona import PLAIN, Persona
from personae.errors import InvalidSettings
from personae.instruments.reading import Reading, origin_of, read_all
from personae.models.activations import Capping, EditableModel
from personae.models.protocol import Scorable
from personae.models.rendering import Renderer
from personae.tables.monitor import Watch, WatchedToken, WatchedTurn
from personae.tables.space import PersonaVector

Floats = NDArray[np.float64]
_NEVER = -1e30
_TIMED = 4  # requests that the overhead is measured on
_ROUNDS = 3


def watch(
    model: EditableModel,
    renderer: Renderer,
    vectors: Mapping[str, tuple[PersonaVector, int]],
    episodes: Sequence[Episode],
    ordinary: Sequence[Episode],
    *,
    false_alarms: float = 0.001,
    every_token: bool = False,
    advance: Callable[[int], None] = lambda _n: None,
) -> Watch:
    """Watch replies on vectors.

    Args:
        model: Read from.
        renderer: Renders for it.
        vectors: Vector and layer by name.
        episodes: What is watched; ids unique.
        ordinary: Replies of nothing special; their `group` is the topic.
        false_alarms: Rate of alarms on ordinary replies that the threshold is set for, 0 to 0.5.
        every_token: Give tokens of all replies, not only of those with an alarm.
        advance: Told of replies read.

    Raises:
        InvalidSettings: If the rate is no rate, or there are fewer than ten ordinary replies.
        IncomparableEvidence: If a vector is of another model.
    """
    if not 0 < false_alarms <= 0.5 or len(ordinary) < 10:
        raise InvalidSettings(
            f"a false-alarm rate of {false_alarms:g} with {len(ordinary)} ordinary replies: the rate must lie above 0 "
            "and up to 0.5, and ten replies are the least."
        )
    for vector, _ in vectors.values():
        vector.origin.require_same(origin_of(model, model.card))
    threshold = float(norm.isf(false_alarms))
    layers = sorted({layer for _, layer in vectors.values()})
    known = _projected(model, renderer, vectors, ordinary, layers, advance)
    found = _projected(model, renderer, vectors, episodes, layers, advance)
    turns: list[WatchedTurn] = []
    scales: dict[str, tuple[float, float]] = {}
    for name in vectors:
        centre, spread = float(known[name].mean()), float(known[name].std(ddof=1))
        scales[name] = (centre, spread)
        for e, value in zip(episodes, found[name], strict=True):
            z = (float(value) - centre) / spread
            turns.append(WatchedTurn(e.id, e.group, e.line, name, float(value), z, z > threshold))
    alarmed = {t.episode for t in turns if t.alarm}
    shown = [e for e in episodes if every_token or e.id in alarmed]
    return Watch(
        model.card.name,
        {name: layer for name, (_, layer) in vectors.items()},
        tuple(turns),
        tuple(_tokens(model, renderer, vectors, shown, scales)),
        threshold,
        false_alarms,
        _left_out_rate(known, [e.group for e in ordinary], threshold),
        len(ordinary),
        measure_overhead(model, _requests(renderer, ordinary[:_TIMED]), vectors),
    )


def measure_overhead(
    model: EditableModel, requests: Sequence[Scorable], vectors: Mapping[str, tuple[PersonaVector, int]]
) -> float:
    """CPU time that projections at the watched layers add to a scoring pass, as a share of it; the least of three.

    A cap below every projection computes the projection at every position and changes nothing.
    """
    idle = [Capping(layer, vector.unit(layer), _NEVER) for vector, layer in vectors.values()]

    def seconds(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    model.score(requests)
    with model.steered(idle) as view:
        view.score(requests)
        rounds = [
            (seconds(lambda: model.score(requests)), seconds(lambda: view.score(requests))) for _ in range(_ROUNDS)
        ]
    plain, watched = (min(r[k] for r in rounds) for k in (0, 1))
    return max(0.0, watched / plain - 1) if plain > 0 else 0.0


def _requests(renderer: Renderer, episodes: Sequence[Episode]) -> list[Scorable]:
    frame = renderer.frames(Persona(PLAIN, ()))[0]
    return [renderer.render(frame, e) for e in episodes]


def _projected(
    model: EditableModel,
    renderer: Renderer,
    vectors: Mapping[str, tuple[PersonaVector, int]],
    episodes: Sequence[Episode],
    layers: Sequence[int],
    advance: Callable[[int], None],
) -> dict[str, Floats]:
    """Projection of every reply's mean, by vector."""
    frame = renderer.frames(Persona(PLAIN, ()))[0]
    readings = [Reading(e.id, PLAIN, e.group, frame, e) for e in episodes]
    read = read_all(model, renderer, readings, reduce="response_mean", layers=layers, advance=advance)
    return {
        name: read.values[:, layers.index(layer)].astype(np.float64) @ vector.unit(layer)
        for name, (vector, layer) in vectors.items()
    }


def _tokens(
    model: EditableModel,
    renderer: Renderer,
    vectors: Mapping[str, tuple[PersonaVector, int]],
    episodes: Sequence[Episode],
    scales: Mapping[str, tuple[float, float]],
) -> list[WatchedToken]:
    if not episodes:
        return []
    layers = sorted({layer for _, layer in vectors.values()})
    states = model.read(_requests(renderer, episodes), layers=layers, reduce="tokens")
    rows: list[WatchedToken] = []
    for e, state in zip(episodes, states, strict=True):
        texts = renderer.completion_text(e)
        for name, (vector, layer) in vectors.items():
            values = state[layers.index(layer)].astype(np.float64) @ vector.unit(layer)
            centre, spread = scales[name]
            rows += [
                WatchedToken(e.id, k, text, name, float(v), (float(v) - centre) / spread)
                for k, (text, v) in enumerate(zip(texts, values, strict=True))
            ]
    return rows


def _left_out_rate(known: Mapping[str, Floats], topics: Sequence[str], threshold: float) -> float:
    """Share of ordinary replies above the threshold that the other topics set, over vectors."""
    of = np.array(topics)
    above = []
    for values in known.values():
        for topic in dict.fromkeys(topics):
            others = values[of != topic]
            if len(others) > 1 and others.std() > 0:
                above.extend((values[of == topic] - others.mean()) / others.std(ddof=1) > threshold)
    return float(np.mean(above)) if above else 0.0
