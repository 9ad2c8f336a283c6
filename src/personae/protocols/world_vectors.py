"""Directions where the truth is known: a trained world's activations against its exact beliefs (A6, A7, A8).

    planted     documents of malicious and of benign speakers -> direction -> does it tell the exact log-odds of malice
                in other documents, beyond its nulls? With labels shuffled, is p uniform?
    belief      ridge probe of the exact log-odds, with permuted personas for selectivity
    causal      moving the stream as delta nats of belief move it: by how much do the model's answers move the persona
                that they speak for? slope of read-out log-odds on delta
    capping     least projection under a floor; bits of positions above it

Traits are the world's first. Not here: worlds (`worlds`), what is accepted (tests and benchmarks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from personae.inference.nulls import Judged, Poles, Tested, null_battery
from personae.inference.probe import BeliefProbe, fit_probe
from personae.models.activations import Capping, EditableModel, Steering
from personae.models.protocol import LanguageModel, Scorable
from personae.protocols.world_measures import predictive, read_out, trait_mass
from personae.worlds.exact import ExactWorld
from personae.worlds.sampling import sample_documents

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
# Of a trait's mass: what answers can show. A belief surer than this changes no answer, so no model is bound to keep it.
_CLIP = 0.003
_OPEN = 3.0  # nats; where states are regressed on beliefs


@dataclass(frozen=True, slots=True, eq=False)
class WorldStates:
    """Documents with the model's states and the exact beliefs at their questions.

    Attributes:
        ids: Shape (n_documents, length).
        malicious: Whether the speaker has the first trait's positive pole, shape (n_documents,).
        values: States at questions, shape (n_documents, n_turns, n_layers, d_model).
        questions: Which question stands there, shape (n_documents, n_turns).
        log_weights: Exact posterior there with a lapse of 0.003 to uniform, nats, (n_documents, n_turns, n_personas).
        log_odds: Of the first trait under it, nats, shape (n_documents, n_turns).
    """

    ids: Ids
    malicious: NDArray[np.bool_]
    values: NDArray[np.float32]
    questions: Ids
    log_weights: Floats
    log_odds: Floats


def world_states(model: EditableModel, exact: ExactWorld, n: int, rng: np.random.Generator) -> WorldStates:
    """Draw documents and read the model at every question of them.

    Args:
        model: Trained model of the world.
        exact: The world.
        n: Documents.
        rng: Source of randomness.
    """
    made = sample_documents(exact, n, rng)
    read = model.read([Scorable(tuple(row.tolist()), 1) for row in made.ids], reduce="tokens")
    values = np.stack(read)[:, :, 2::2].transpose(0, 2, 1, 3)  # position p stands at p - 1; questions at 3, 5, ...
    exactly = np.exp(exact.running_log_weights(made.ids)[:, 3::2])
    weights = (1 - _CLIP) * exactly + _CLIP / exactly.shape[-1]
    malicious = exact.world.signs[made.speaker, 0] > 0
    log_odds = logit(trait_mass(exact, weights)[..., 0])
    return WorldStates(made.ids, malicious, values, made.ids[:, 3::2], np.log(weights), log_odds)


def planted_direction(
    states: WorldStates,
    rng: np.random.Generator,
    *,
    shuffled: bool = False,
    n_permutations: int = 199,
    n_random: int = 499,
) -> Tested:
    """Direction from half of the documents, judged by the exact log-odds of the other half, at the last question.

    Args:
        states: Of a world.
        rng: Source of randomness.
        shuffled: Whether the speakers of the first half are shuffled: then there is nothing to find.
        n_permutations: Of labels.
        n_random: Random directions.
    """
    n = len(states.ids) // 2
    label = states.malicious[:n].copy()
    if shuffled:
        label = rng.permutation(label)
    last = states.values[:, -1]
    poles = Poles(last[:n], label, [0] * n)
    judged = Judged(last[n:], states.log_odds[n:, -1])
    return null_battery(poles, judged, "correlation", rng=rng, n_permutations=n_permutations, n_random=n_random)


def belief_probe(states: WorldStates, exact: ExactWorld, layer: int, *, seed: int = 0) -> BeliefProbe:
    """Probe of the first trait's log-odds at questions of one layer, by document."""
    n, n_turns = states.log_odds.shape
    positive = np.flatnonzero(exact.world.signs[:, 0] > 0).tolist()
    return fit_probe(
        states.values[:, :, layer].reshape(n * n_turns, -1),
        states.log_weights.reshape(n * n_turns, -1),
        np.repeat(np.arange(n), n_turns).tolist(),
        positive,
        position=np.tile(np.arange(n_turns), n),
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class CausalSlope:
    """What moving along a belief's direction does to the answers.

    Attributes:
        slope: Of read-out log-odds on delta, where the stream is moved as delta nats of exact belief move it.
        by_probe: The same per nat that the probe reads off the move.
        weights: Per nat of the probe, moving along its weights w / |w|^2 instead: a direction that reads well and in
            which states hardly ever move.
        random: Largest size of slope over random directions of the same length.
        deltas: Nats moved.
        moved: Mean change of read-out log-odds at each, nats.
    """

    slope: float
    by_probe: float
    weights: float
    random: float
    deltas: tuple[float, ...]
    moved: tuple[float, ...]


def belief_direction(states: WorldStates, layer: int) -> Floats:
    """How the stream moves per nat of belief: regression on the exact log-odds within a question, where they are open.

    This is the pattern of the belief, not the weights of a probe (Haufe et al. 2014, NeuroImage 87).
    """
    h = states.values[:, :, layer].reshape(-1, states.values.shape[-1]).astype(np.float64)
    belief, asked = states.log_odds.ravel(), states.questions.ravel()
    keep = np.abs(belief) < _OPEN
    h, belief = h[keep], belief[keep]
    index = np.unique(asked[keep], return_inverse=True)[1]
    member = np.eye(index.max() + 1)[index]
    share = member / member.sum(axis=0)
    h, belief = h - member @ (share.T @ h), belief - member @ (share.T @ belief)
    return belief @ h / (belief @ belief)


def causal_slope(
    model: EditableModel,
    exact: ExactWorld,
    states: WorldStates,
    probe: BeliefProbe,
    layer: int,
    rng: np.random.Generator,
    *,
    deltas: Sequence[float] = (-2.0, -1.0, 1.0, 2.0),
    n_contexts: int = 24,
    n_random: int = 3,
) -> CausalSlope:
    """Move the stream along the belief and read out who the answers speak for.

    Contexts are beginnings of documents whose exact belief is not yet sure, so that it can move both ways.
    """
    contexts = _open_contexts(states, n_contexts)
    base = _read_out_log_odds(model, exact, contexts)
    w, pattern = probe.direction, belief_direction(states, layer)

    def moved(vector: Floats) -> Floats:
        found = []
        for delta in deltas:
            with model.steered([Steering(layer, vector.astype(np.float32), float(delta))]) as view:
                found.append(float((_read_out_log_odds(view, exact, contexts) - base).mean()))
        return np.array(found)

    along = moved(pattern)
    drawn = rng.standard_normal((n_random, len(w)))
    drawn *= np.linalg.norm(pattern) / np.linalg.norm(drawn, axis=1, keepdims=True)
    slope = _slope(deltas, along)
    return CausalSlope(
        slope,
        slope / float(w @ pattern),
        _slope(deltas, moved(w / (w @ w))),
        max(abs(_slope(deltas, moved(v))) for v in drawn),
        tuple(deltas),
        tuple(float(v) for v in along),
    )


@dataclass(frozen=True, slots=True)
class CapCheck:
    """What a floor does.

    Attributes:
        shortfall: Largest distance of a projection below the floor, in units of the stream; at most 0 is perfect.
        n_raised: Positions that lay below it.
        n_kept: Positions above it whose bits are unchanged.
        n_changed: Positions above it whose bits changed: there must be none.
    """

    shortfall: float
    n_raised: int
    n_kept: int
    n_changed: int


def check_cap(model: EditableModel, ids: Ids, vector: Floats, layer: int, percent: float = 25.0) -> CapCheck:
    """Floor the projection at a percentile and look at every position, prompt and response alike.

    Positions above the floor are compared at the capped layer, before any block above can mix them with others.
    """
    requests = [Scorable(tuple(row.tolist()), 1) for row in ids]
    unit = vector / np.linalg.norm(vector)
    plain = np.concatenate(model.read(requests, layers=[layer], reduce="tokens"), axis=1)[0]
    floor = float(np.percentile(plain.astype(np.float64) @ unit, percent))
    with model.steered([Capping(layer, vector.astype(np.float32), floor)]) as view:
        capped = np.concatenate(view.read(requests, layers=[layer], reduce="tokens"), axis=1)[0]
    before, after = plain.astype(np.float64) @ unit, capped.astype(np.float64) @ unit
    above = before > floor + 1e-4 * max(1.0, abs(floor))
    same = (plain == capped).all(axis=1)
    return CapCheck(
        float((floor - after).max()), int((before < floor).sum()), int((above & same).sum()), int((above & ~same).sum())
    )


def _open_contexts(states: WorldStates, n: int) -> list[Ids]:
    """Beginnings of documents, up to before a question, where the log-odds are within 2 nats of even."""
    rows, turns = np.nonzero(np.abs(states.log_odds) < 2)
    keep = turns >= 2
    first = dict(zip(rows[keep].tolist(), turns[keep].tolist(), strict=True))
    return [states.ids[row, : 3 + 2 * turn] for row, turn in list(first.items())[:n]]


def _read_out_log_odds(model: LanguageModel, exact: ExactWorld, contexts: list[Ids]) -> Floats:
    found = read_out(predictive(model, exact, contexts), np.exp(exact.tables.log_theta))
    return logit(np.clip(trait_mass(exact, found)[:, 0], _CLIP, 1 - _CLIP))


def _slope(deltas: Sequence[float], moved: Floats) -> float:
    x = np.asarray(deltas)
    return float((x @ moved) / (x @ x))
