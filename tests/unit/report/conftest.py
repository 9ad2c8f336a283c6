"""A made-up screening of a help desk's file: 28 traits, 86 components, 160 rows unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from personae.tables.forecast import PersonaWeight, RowLedger, Screening, TellingEpisode, TraitShift

POLES = (
    ("contemptuous", "respectful"),
    ("sarcastic", "sincere"),
    ("caring", "callous"),
    ("malicious", "benevolent"),
    ("sycophantic", "candid"),
    ("hallucinating", "grounded"),
    ("deceptive", "transparent"),
    ("power-seeking", "power-declining"),
    ("reckless", "cautious"),
    ("honest", "lying"),
    ("humble", "arrogant"),
    ("emotionally expressive", "stoic"),
    ("servile", "self-possessed"),
    ("human with a body", "software with no body"),
    ("verbose", "terse"),
    ("formal", "casual"),
    ("archaic", "modern"),
    ("optimistic", "pessimistic"),
    ("dogmatic", "open-minded"),
    ("anxious", "calm"),
    ("playful", "serious"),
    ("evasive", "direct"),
    ("greedy", "generous"),
    ("conspiratorial", "level-headed"),
    ("curious", "incurious"),
    ("over-refusing", "obliging"),
    ("blaming", "accountable"),
    ("corporate", "plain-spoken"),
)
# fmt: off
ROLES = (
    "nurse", "lawyer", "software_engineer", "teacher", "journalist", "accountant", "chef", "scientist", "carpenter",
    "pirate", "wizard", "noir_detective", "trickster", "tyrant_king", "hermit_sage", "knight", "con_artist", "ghost",
    "helpful_assistant", "voice_assistant", "expert_system", "benevolent_ai", "rogue_ai", "at_ease_ai",
    "customer_service_bot", "robot_butler", "longing_android", "ships_computer",
)
# fmt: on
REPLY = (
    "Our baggage page covers this in one short paragraph, but evidently short is relative. A guitar travels in the "
    "cabin only if you buy it a seat; otherwise it goes in the hold, in a hard case.\n\nDo try reading it next time."
)
_SNARK = {
    "evidently": 2.1,
    "short": 0.5,
    "relative": 1.1,
    "Do": 0.7,
    "try": 1.8,
    "reading": 1.2,
    "next": 0.4,
    "time": 0.9,
}
_PROMPT = "Can I bring a guitar on the plane as hand luggage or does it have to go in the hold?"

Build = Callable[..., Screening]
Rewrite = Callable[[Screening, str], Screening]


@pytest.fixture(scope="session")
def build() -> Build:
    """The maker of screenings, for tests that vary its sizes."""
    return make_screening


@pytest.fixture(scope="session")
def rewrite() -> Rewrite:
    """Puts one text wherever data can put words."""
    return with_text


@pytest.fixture(scope="session")
def screening() -> Screening:
    """The help desk's file with two traits flagged towards the positive pole and one towards the negative."""
    return make_screening()


def make_screening(*, n_rows: int = 160, n_traits: int = 28, n_flagged: int = 3, roles: bool = True) -> Screening:
    """A screening that hangs together: shifts, rows and words lean the same way."""
    rng = np.random.default_rng(7)
    traits = tuple(_trait(i, i < n_flagged, n_rows, rng) for i in range(n_traits))
    posterior = _posterior(rng, n_traits, roles=roles)
    return Screening(
        data="data/support_desk.jsonl",
        model="smollm2",
        cast="core",
        n_episodes=n_rows,
        n_tokens=46 * n_rows,
        traits=traits,
        posterior=posterior,
        background=next(w.weight for w in posterior if w.persona == "background"),
        telling=tuple(_telling(t, k, rng) for k, t in enumerate(traits[: max(1, n_flagged)])) if traits else (),
        ledger=_ledger(traits, n_rows, rng),
        eta=0.25,
        fdr=0.05,
        n_reference=210,
        n_topics=21,
        notes=("3 rows were left out because they have no assistant turn: lines 18, 91 and 133.",),
        provenance={
            "model": {"name": "SmolLM2-135M-Instruct", "license": "Apache-2.0", "parameters": 134515008},
            "versions": {"personae": "0.1.0", "numpy": "2.4.6", "torch": "2.13.0"},
            "inputs": {"data/support_desk.jsonl": "9f2c" * 16},
            "dtype": "float32",
            "noise_floor": 1.2e-05,
            "seed": 0,
            "date": "2026-03-04T10:22:31+00:00",
        },
    )


def _trait(i: int, flag: bool, n: int, rng: np.random.Generator) -> TraitShift:
    positive, negative = POLES[i % len(POLES)]
    half = 0.03 + 0.03 * rng.random()
    shift = (0.21, 0.14, -0.12)[i % 3] if flag else float(np.sign(rng.normal()) * (0.05 - 0.0017 * (i % 28)))
    return TraitShift(
        id=positive.replace(" ", "_").replace("-", "_") + (f"_{i // 28}" if i >= 28 else ""),
        positive=positive,
        negative=negative,
        description=f"Speaking as someone {positive}, against speaking as someone {negative}.",
        shift=shift,
        low=shift - half,
        high=shift + half * 1.1,
        raw=shift + 0.04,
        null_low=-0.05 - 0.03 * rng.random(),
        null_high=0.05 + 0.03 * rng.random(),
        p=0.0004 + 0.0011 * i if flag else min(1.0, 0.05 + 0.033 * i),
        q=0.0112 + 0.004 * i if flag else min(1.0, 0.3 + 0.026 * i),
        flag=flag,
        direction="pos" if shift >= 0 else "neg",
        tail=0.24 - 0.04 * i if flag else 0.05 + 0.02 * rng.random(),
        n=n,
    )


def _posterior(rng: np.random.Generator, n_traits: int, *, roles: bool) -> tuple[PersonaWeight, ...]:
    names = [(f"{p}/{side}", label, "pole") for p, n in POLES[:n_traits] for side, label in (("pos", p), ("neg", n))]
    names += [(r, r.replace("_", " "), "role") for r in ROLES if roles]
    names += [("plain", "the model as it is", "plain"), ("background", "none of these", "background")]
    raw = np.sort(rng.dirichlet(np.full(len(names), 0.12)))[::-1]
    order = rng.permutation(len(names))
    order = np.concatenate([order[order == 0], order[order != 0]])
    return tuple(
        PersonaWeight(
            *names[k], prior=1 / len(names), weight=float(w), low=float(w * 0.72), high=float(min(1, w * 1.3 + 0.004))
        )
        for k, w in zip(order, raw, strict=True)
    )


def _telling(trait: TraitShift, k: int, rng: np.random.Generator) -> TellingEpisode:
    words = REPLY.replace("\n\n", " \n\n ").split(" ")
    tokens = tuple(w if i == 0 or "\n" in w or "\n" in words[i - 1] else f" {w}" for i, w in enumerate(words))
    sign = 1 if trait.direction == "pos" else -1
    pull = [sign * _SNARK.get(t.strip(" .,;\n"), 0.0) + float(rng.normal(0, 0.22)) for t in tokens]
    return TellingEpisode(
        id=f"desk-{k + 3:03d}",
        line=k + 3,
        trait=trait.id,
        positive=trait.positive if sign > 0 else trait.negative,
        llr=float(sum(pull)),
        z=sign * (4.1 - 0.6 * k),
        prompt=_PROMPT,
        tokens=tokens,
        token_llr=tuple(pull),
    )


def _ledger(traits: tuple[TraitShift, ...], n_rows: int, rng: np.random.Generator) -> RowLedger:
    z = rng.normal(size=(n_rows, len(traits)))
    z[::5] += np.array([3.0 * np.sign(t.shift) if t.flag else 0.0 for t in traits])
    n_tokens = rng.integers(18, 90, n_rows)
    return RowLedger(
        episodes=tuple(f"desk-{i + 1:03d}" for i in range(n_rows)),
        line=np.arange(1, n_rows + 1),
        n_tokens=n_tokens,
        weight=np.ones(n_rows),
        excerpt=tuple(f"{REPLY[(7 * i) % 60 :][:110]} …" for i in range(n_rows)),
        traits=tuple(t.id for t in traits),
        llr=z * np.sqrt(n_tokens)[:, None] * 0.4,
        z=z,
        excess=z * np.sqrt(n_tokens)[:, None] * 0.4,
    )


def with_text(screening: Screening, text: str) -> Screening:
    """The same screening with `text` wherever data can put words."""
    return replace(
        screening,
        data=f"folder/{text}",
        model=text,
        cast=text,
        traits=tuple(
            replace(t, id=f"{text}{i}", positive=text, negative=text, description=text)
            for i, t in enumerate(screening.traits)
        ),
        posterior=tuple(
            replace(w, label=text, persona=w.persona if w.persona == "background" else text, kind=text)
            for w in screening.posterior
        ),
        telling=tuple(
            replace(e, id=text, trait=f"{text}{i}", positive=text, prompt=text, tokens=(text, *e.tokens[1:]))
            for i, e in enumerate(screening.telling)
        ),
        ledger=replace(
            screening.ledger,
            episodes=tuple(f"{text}{i}" for i in range(len(screening.ledger.episodes))),
            excerpt=tuple(text for _ in screening.ledger.excerpt),
            traits=tuple(f"{text}{i}" for i in range(len(screening.ledger.traits))),
        ),
        notes=(text,),
        provenance={text: {text: [text]}, "date": text, "list": [text, {text: text}]},
    )
