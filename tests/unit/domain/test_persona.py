"""Casts: unique ids, order, priors, selections, joins."""

from __future__ import annotations

import numpy as np
import pytest

from personae.domain.persona import BACKGROUND, PLAIN, Cast, Persona, Trait, join_casts
from personae.errors import DuplicatePersona, InvalidSettings, UnknownPersona


def trait(name: str, n: int = 2) -> Trait:
    poles = [Persona(f"{name}/{p}", tuple(f"{p} {k}" for k in range(n)), f"{p} {name}", "pole") for p in ("pos", "neg")]
    return Trait(name, *poles, description=f"about {name}")


def role(name: str, n: int = 1) -> Persona:
    return Persona(name, tuple(f"You are {name} {k}." for k in range(n)), f"a {name}")


@pytest.fixture
def cast() -> Cast:
    prior = {"rude/pos": 3.0, "pirate": 0.0, "plain": 2.0, "calm/neg": 5.0}
    return Cast("c", (trait("rude"), trait("calm", 3)), (role("pirate", 2), role("nurse")), prior, "words")


def test_order_is_kept_and_the_background_comes_last(cast: Cast) -> None:
    names = ("rude/pos", "rude/neg", "calm/pos", "calm/neg", "pirate", "nurse", "plain", "background")
    assert cast.component_ids == names
    assert tuple(p.id for p in cast.personas) == names[:-1]
    assert cast.personas[-1] == Persona(PLAIN, (), "the model as it is", "plain")
    assert cast.n_instructions == 2 + 2 + 3 + 3 + 2 + 1 + 1


def test_the_prior_is_relative_and_1_where_absent(cast: Cast) -> None:
    prior = np.exp(cast.log_prior)
    assert prior.sum() == pytest.approx(1)
    assert np.allclose(prior * 14, [3, 1, 1, 5, 0, 1, 2, 1])
    assert np.isneginf(cast.log_prior[4])


def test_labels(cast: Cast) -> None:
    assert cast.label_of("rude/neg") == "neg rude"
    assert cast.label_of(PLAIN) == "the model as it is"
    assert cast.label_of(BACKGROUND) == "none of these"
    assert Cast("c", roles=(Persona("x", ("y",)),)).label_of("x") == "x"
    with pytest.raises(UnknownPersona, match="no persona 'rude'"):
        cast.label_of("rude")


@pytest.mark.parametrize(
    ("traits", "roles"),
    [
        ((trait("a"), trait("a")), ()),
        ((), (role("a"), role("a"))),
        ((trait("a"),), (role("a"),)),
        ((), (role(PLAIN),)),
        ((trait(BACKGROUND),), ()),
        ((trait("a"),), (role("a/pos"),)),
    ],
)
def test_ids_are_unique(traits: tuple[Trait, ...], roles: tuple[Persona, ...]) -> None:
    with pytest.raises(DuplicatePersona):
        Cast("c", traits, roles)


@pytest.mark.parametrize("prior", [{"a": np.nan}, {"a": np.inf}, {"a": -0.1}, {"a": 1e308, "b": 1e308}])
def test_priors_that_are_none(prior: dict[str, float]) -> None:
    with pytest.raises(InvalidSettings, match="prior weights"):
        Cast("c", (), (role("a"), role("b")), prior)


def test_a_prior_without_mass() -> None:
    with pytest.raises(InvalidSettings, match="above 0"):
        Cast("c", (), (role("a"),), {"a": 0, PLAIN: 0, BACKGROUND: 0})


@pytest.mark.parametrize("name", ["nobody", "rude", "rude/mid"])
def test_a_prior_of_nobody(name: str) -> None:
    with pytest.raises(UnknownPersona, match=name):
        Cast("c", (trait("rude"),), (), {name: 1})


def test_a_selection_keeps_the_casts_order_and_the_prior_of_what_is_left(cast: Cast) -> None:
    chosen = cast.select(["nurse", "calm", "nurse"])
    assert chosen.component_ids == ("calm/pos", "calm/neg", "nurse", "plain", "background")
    assert chosen.prior == {"plain": 2.0, "calm/neg": 5.0}
    assert (chosen.id, chosen.description) == (cast.id, cast.description)
    with pytest.raises(UnknownPersona, match="no trait or role named queen, rude/pos") as caught:
        cast.select(["queen", "nurse", "rude/pos"])
    assert "calm, nurse, pirate, rude" in caught.value.hint


def test_fewer_paraphrases(cast: Cast) -> None:
    cut = cast.limit_paraphrases(2)
    assert cut.n_instructions == 2 + 2 + 2 + 2 + 2 + 1 + 1
    assert cut.traits[1].pos.instructions == ("pos 0", "pos 1")
    assert cut.traits[1].description == "about calm"
    assert cut.prior == cast.prior
    assert cast.limit_paraphrases(9) == cast


def test_joins_keep_the_order_of_both() -> None:
    one = Cast("one", (trait("a"),), (role("x"),), {"x": 2}, "first")
    two = Cast("two", (trait("b"),), (role("y"),), {"b/pos": 3})
    joined = join_casts([one, two])
    assert joined.id == "one+two"
    assert joined.description == "first"
    assert [t.id for t in joined.traits] == ["a", "b"]
    assert [r.id for r in joined.roles] == ["x", "y"]
    assert joined.prior == {"x": 2, "b/pos": 3}
    assert join_casts([one]) is one
    with pytest.raises(DuplicatePersona, match=r"cast 'one\+one'"):
        join_casts([one, one])
