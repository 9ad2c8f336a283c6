"""Personas, traits, roles and casts: the hypotheses about who is speaking.

Not here: reading casts from files (`files.casts`), how an instruction becomes tokens (`models.rendering`).

    trait  = two personas (poles), each a mixture over its paraphrased instructions
    role   = one persona, likewise
    cast   = personas + prior, always with `plain` (the model as it is) and `background` (none of these)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from personae.errors import DuplicatePersona, InvalidSettings, UnknownPersona

PLAIN = "plain"
BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class Persona:
    """A hypothesis about who is speaking, given by paraphrases of one instruction.

    Attributes:
        id: Short, unique in its cast, stable: "pirate", "contemptuous/pos".
        instructions: Paraphrases, each a complete instruction; none for `plain`.
        label: What a person calls it.
        kind: "pole", "role" or "plain".
        description: One sentence, or empty.
    """

    id: str
    instructions: tuple[str, ...]
    label: str = ""
    kind: str = "role"
    description: str = ""


@dataclass(frozen=True, slots=True)
class Trait:
    """A persona dimension with two poles. Positive log-likelihood ratios point to `pos`."""

    id: str
    pos: Persona
    neg: Persona
    description: str = ""


@dataclass(frozen=True, slots=True)
class Cast:
    """Personas under comparison, with a prior. Order is significant and kept.

    Attributes:
        id: Name of the cast.
        traits: Dimensions with two poles.
        roles: Characters.
        prior: Relative prior weight by persona id (poles as "trait/pos"); 1 where absent.
    """

    id: str
    traits: tuple[Trait, ...] = ()
    roles: tuple[Persona, ...] = ()
    prior: Mapping[str, float] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        seen: set[str] = {PLAIN, BACKGROUND}
        for name in [t.id for t in self.traits] + [r.id for r in self.roles]:
            if name in seen:
                raise DuplicatePersona(
                    f"cast '{self.id}' has two entries with the id '{name}'.",
                    hint="Every trait and role needs an id of its own ('plain' and 'background' are taken).",
                )
            seen.add(name)
        if len(set(self.component_ids)) < len(self.component_ids):
            raise DuplicatePersona(f"cast '{self.id}' has a role named like a pole of a trait (TRAIT/pos, TRAIT/neg).")
        unknown = sorted(set(self.prior) - set(self.component_ids))
        if unknown:
            raise UnknownPersona(f"cast '{self.id}' gives a prior to unknown personas: {', '.join(unknown)}.")
        if any(not np.isfinite(w) or w < 0 for w in self.prior.values()):
            raise InvalidSettings(f"cast '{self.id}': prior weights must be finite and not negative.")
        if not 0 < sum(self.prior.get(name, 1.0) for name in self.component_ids) < np.inf:
            raise InvalidSettings(f"cast '{self.id}': prior weights must have a sum that is finite and above 0.")

    @property
    def personas(self) -> tuple[Persona, ...]:
        """Every persona that is scored: poles, roles, then `plain`."""
        poles = tuple(p for t in self.traits for p in (t.pos, t.neg))
        return (*poles, *self.roles, Persona(PLAIN, (), label="the model as it is", kind="plain"))

    @property
    def component_ids(self) -> tuple[str, ...]:
        """Ids of the mixture's components: the personas and the background, in order."""
        return (*(p.id for p in self.personas), BACKGROUND)

    @property
    def log_prior(self) -> NDArray[np.float64]:
        """Log prior of every component, nats, shape (n_personas + 1,), log-sum-exp 0."""
        weights = np.array([self.prior.get(name, 1.0) for name in self.component_ids])
        with np.errstate(divide="ignore"):
            return np.log(weights / weights.sum())

    @property
    def n_instructions(self) -> int:
        """Number of instructions over all personas, the plain one counted once."""
        return sum(max(1, len(p.instructions)) for p in self.personas)

    def label_of(self, component: str) -> str:
        """What a person calls a component."""
        if component == BACKGROUND:
            return "none of these"
        for persona in self.personas:
            if persona.id == component:
                return persona.label or persona.id
        raise UnknownPersona(f"cast '{self.id}' has no persona '{component}'.")

    def select(self, names: Iterable[str]) -> Cast:
        """The cast with the named traits and roles only, in the cast's own order.

        Raises:
            UnknownPersona: If a name is neither a trait nor a role of this cast.
        """
        wanted = list(names)
        known = {t.id for t in self.traits} | {r.id for r in self.roles}
        missing = [n for n in wanted if n not in known]
        if missing:
            raise UnknownPersona(
                f"cast '{self.id}' has no trait or role named {', '.join(missing)}.",
                hint=f"It has: {', '.join(sorted(known))}.",
            )
        traits = tuple(t for t in self.traits if t.id in wanted)
        roles = tuple(r for r in self.roles if r.id in wanted)
        return Cast(self.id, traits, roles, _kept(self.prior, traits, roles), self.description)

    def limit_paraphrases(self, n: int) -> Cast:
        """The cast with at most the first `n` instructions of every persona."""

        def cut(p: Persona) -> Persona:
            return replace(p, instructions=p.instructions[:n])

        traits = tuple(replace(t, pos=cut(t.pos), neg=cut(t.neg)) for t in self.traits)
        return replace(self, traits=traits, roles=tuple(cut(r) for r in self.roles))


def _kept(prior: Mapping[str, float], traits: tuple[Trait, ...], roles: tuple[Persona, ...]) -> dict[str, float]:
    names = {f"{t.id}/{pole}" for t in traits for pole in ("pos", "neg")} | {r.id for r in roles} | {PLAIN, BACKGROUND}
    return {k: v for k, v in prior.items() if k in names}


def join_casts(casts: Iterable[Cast]) -> Cast:
    """One cast with the traits and roles of all.

    Raises:
        DuplicatePersona: If two of them use the same id.
    """
    parts = list(casts)
    if len(parts) == 1:
        return parts[0]
    return Cast(
        "+".join(c.id for c in parts),
        tuple(t for c in parts for t in c.traits),
        tuple(r for c in parts for r in c.roles),
        {k: v for c in parts for k, v in c.prior.items()},
        "; ".join(c.description for c in parts if c.description),
    )
