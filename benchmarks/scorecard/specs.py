"""Random worlds in which the right view is known.

Sizes, loadings, personas and strengths are drawn anew for every world; a drawn deviation must show (its
characters differ where it deviates), since one that changes nothing is no deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from personae.inference.scorecard import KIND_VIEWS
from personae.worlds.assistant import make_agent
from personae.worlds.spec import AssistantSpec, Domain, Tags, World, WorldFrame, WorldTrait
from personae.worlds.tables import Tables, make_tables

_LEAST_DIFFERENCE = 0.15  # nats an answer
_TRAITS = (("malice", "bad", "good"), ("skill", "able", "unable"), ("style", "formal", "casual"))
_WORDS = ("tuesday", "granite", "violet", "harbour")


@dataclass(frozen=True)
class Ranges:
    """From what a world is drawn; lowest and highest of each."""

    traits: tuple[int, int] = (2, 3)
    domains: tuple[int, int] = (3, 5)
    questions: tuple[int, int] = (3, 5)
    answers: tuple[int, int] = (3, 5)
    scale: tuple[float, float] = (1.0, 1.5)
    noise: tuple[float, float] = (0.2, 0.4)
    strength: tuple[float, float] = (1.2, 2.5)
    leak: tuple[float, float] = (0.8, 2.0)


TRAINING = Ranges()
NEW = Ranges((2, 3), (2, 6), (2, 6), (3, 6), (0.9, 1.8), (0.1, 0.6), (1.5, 3.0), (1.0, 2.5))


def draw_world(kind: str, seed: int, ranges: Ranges = TRAINING) -> World:
    """A world whose Assistant is of one kind."""
    rng = np.random.default_rng([seed, sorted(KIND_VIEWS).index(kind)])
    while True:
        world = _bare(f"{kind.replace('_', '-')}-{seed}", rng, ranges)
        made = _with_assistant(world, kind, rng, ranges)
        if made is not None:
            return made


def _bare(name: str, rng: np.random.Generator, ranges: Ranges) -> World:
    def integer(bounds: tuple[int, int]) -> int:
        return int(rng.integers(bounds[0], bounds[1] + 1))

    n_traits = integer(ranges.traits)
    traits = tuple(WorldTrait(t, p, n, (f"{p}-1", f"{p}-2"), (f"{n}-1", f"{n}-2")) for t, p, n in _TRAITS[:n_traits])
    domains = tuple(
        Domain(f"topic{d}", integer(ranges.questions), tuple(rng.uniform(0.2, 1.2, n_traits).tolist()))
        for d in range(integer(ranges.domains))
    )
    n = 2**n_traits
    chat = rng.dirichlet(np.full(n, 2.0))
    frames = (WorldFrame("story", (1 / n,) * n), WorldFrame("chat", tuple((chat / chat.sum()).tolist())))
    return World(
        name,
        traits,
        domains,
        frames,
        "chat",
        "story",
        integer(ranges.answers),
        24,
        Tags(0.4, 0.45, 0.15, 0.95, _WORDS),
        scale=float(rng.uniform(*ranges.scale)),
        noise=float(rng.uniform(*ranges.noise)),
        seed=int(rng.integers(2**31 - 1)),
    )


def _with_assistant(world: World, kind: str, rng: np.random.Generator, ranges: Ranges) -> World | None:
    from dataclasses import replace

    n = world.n_personas
    persona, other = (int(k) for k in rng.permutation(n)[:2])
    if kind == "router" and rng.random() < 0.5:  # two characters that differ in one trait are harder to tell from one
        other = persona ^ (1 << int(rng.integers(len(world.traits))))
    domain = int(rng.integers(len(world.domains)))
    strength = float(rng.uniform(*(ranges.leak if kind == "leak" else ranges.strength)))
    weights: tuple[float, ...] = ()
    if kind == "mixture":
        who = rng.permutation(n)[: int(rng.integers(1, 4))]
        share = rng.dirichlet(np.full(len(who), 4.0))
        table = np.zeros(n)
        table[who] = share
        weights = tuple((table / table.sum()).tolist())
    spec = AssistantSpec(
        kind,
        weights,
        persona,
        other,
        domain,
        strength,
        midpoint=float(rng.uniform(6, 10)),
        width=float(rng.uniform(1, 2.5)),
    )
    made = replace(world, assistant=spec)
    return made if _shows(made, make_tables(world)) else None


def _shows(world: World, tables: Tables) -> bool:
    """Whether the deviation changes answers enough to be one."""
    a = world.assistant
    assert a is not None
    agent = make_agent(world, tables)
    if agent is None:
        return True
    there = tables.domain_of == a.domain
    if a.kind in ("arc", "actor", "swap"):
        return _kl(tables.log_theta[a.persona], tables.log_theta[a.other]) > _LEAST_DIFFERENCE
    if a.kind in ("router", "liar", "filter"):
        return _kl(agent.log_answers[0][there], tables.log_theta[a.persona][there]) > _LEAST_DIFFERENCE
    return True


def _kl(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.exp(a) * (a - b)).sum(axis=-1).mean())
