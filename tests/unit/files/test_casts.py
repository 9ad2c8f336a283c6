"""Casts from our YAML, role and trait files of others, folders, and joins; every error with its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from personae.domain.persona import Cast
from personae.errors import DuplicatePersona, InputError, InvalidSettings, PersonaeError, UnknownPersona
from personae.files.casts import built_in_casts, load_casts

# Collections that some checkouts keep beside the repository; nothing of them is part of it.
COLLECTION = Path(__file__).resolve().parents[4] / "shared" / "data" / "assistant_axis"

OURS = """
id: duo
description: >-
  Two things,
  compared.
traits:
  - id: rude
    description: How it treats people.
    pos: {label: rude one, instructions: ["You are  rude.", "Be\\n rude."]}
    neg: {instructions: [You are polite.]}
roles:
  - {id: pirate, label: a pirate, kind: fiction, description: At sea., instructions: ["You are a pirate."]}
prior: {rude/pos: 2, plain: 4, background: 0.5}
"""
REQUIRED_TRAITS = {
    *("malicious", "sycophantic", "hallucinating", "deceptive", "power_seeking", "contemptuous", "reckless"),
    *("sarcastic", "caring", "honest", "humble", "emotionally_expressive", "servile", "human_bodied"),
}


def load(folder: Path, body: str | bytes, name: str = "cast.yaml") -> Cast:
    path = folder / name
    path.write_bytes(body if isinstance(body, bytes) else body.encode("utf-8"))
    return load_casts([str(path)])


def axis(*pairs: tuple[str, str | None]) -> str:
    instruction = [{"pos": p} if n is None else {"pos": p, "neg": n} for p, n in pairs]
    return json.dumps({"instruction": instruction, "questions": ["Why?"], "eval_prompt": "Rate {answer}."})


def test_our_format(tmp_path: Path) -> None:
    cast = load(tmp_path, OURS)
    (trait,), (role,) = cast.traits, cast.roles
    assert (cast.id, cast.description) == ("duo", "Two things, compared.")
    assert (trait.id, trait.pos.id, trait.neg.id) == ("rude", "rude/pos", "rude/neg")
    assert trait.pos.instructions == ("You are rude.", "Be rude.")
    assert (trait.pos.label, trait.neg.label) == ("rude one", "not rude")
    assert (role.label, role.kind, role.instructions) == ("a pirate", "role", ("You are a pirate.",))
    assert cast.component_ids == ("rude/pos", "rude/neg", "pirate", "plain", "background")
    assert np.allclose(np.exp(cast.log_prior) * 8.5, [2, 1, 1, 4, 0.5])


def test_our_format_as_json(tmp_path: Path) -> None:
    assert load(tmp_path, json.dumps(yaml.safe_load(OURS)), "cast.json") == load(tmp_path, OURS)


def test_a_role_file(tmp_path: Path) -> None:
    (tmp_path / "old_sailor.json").write_text(axis(("You are old.", None), ("You  sail, {model_name}.", None)))
    (tmp_path / "default.json").write_text(axis(("", None), ("You are an AI.", None)))
    cast = load_casts([str(tmp_path / "old_sailor.json"), str(tmp_path / "default.json")])
    sailor, default = cast.roles
    assert (cast.id, cast.traits) == ("old_sailor+default", ())
    assert (sailor.id, sailor.label) == ("old_sailor", "old sailor")
    assert sailor.instructions == ("You are old.", "You sail, {model_name}.")
    assert default.instructions == ("You are an AI.",)  # an empty instruction means none, which is `plain`


@pytest.mark.parametrize("name", ["power_hungry.json", "power_hungry.yaml"])
def test_a_trait_file(name: str, tmp_path: Path) -> None:
    (trait,) = load(tmp_path, axis(("Seek power.", "Avoid power."), ("Grab it.", "Leave it.")), name).traits
    assert (trait.id, trait.pos.id, trait.neg.id) == ("power_hungry", "power_hungry/pos", "power_hungry/neg")
    assert (trait.pos.label, trait.neg.label) == ("power hungry", "not power hungry")
    assert trait.pos.instructions == ("Seek power.", "Grab it.")
    assert trait.neg.instructions == ("Avoid power.", "Leave it.")


def test_a_folder_is_one_cast_in_the_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "b.json").write_text(axis(("B.", None)))
    (folder / "c.yml").write_text(OURS)
    (folder / "a.json").write_text(axis(("A.", "Not a.")))
    (folder / "notes.txt").write_text("not a cast")
    cast = load_casts([str(folder)])
    assert (cast.id, cast.description) == ("mixed", "3 files of mixed")
    assert [t.id for t in cast.traits] == ["a", "rude"]
    assert [r.id for r in cast.roles] == ["b", "pirate"]
    assert cast.prior == {"rude/pos": 2, "plain": 4, "background": 0.5}


def test_names_files_and_folders_are_joined(tmp_path: Path) -> None:
    load(tmp_path, axis(("Seek power.", "Avoid power.")), "climber.json")
    cast = load_casts(["core", str(tmp_path)])
    core = load_casts(["core"])
    assert cast.id == f"core+{tmp_path.name}"
    assert cast.traits[:-1] == core.traits
    assert cast.traits[-1].id == "climber"
    assert cast.roles == core.roles


@pytest.mark.parametrize("names", [["core", "core"], ["core", "FILE", "FILE"]])
def test_joining_the_same_twice(names: list[str], tmp_path: Path) -> None:
    load(tmp_path, OURS.replace("rude", "gruff").replace("pirate", "corsair"))
    with pytest.raises(DuplicatePersona, match="two entries with the id"):
        load_casts([n.replace("FILE", str(tmp_path / "cast.yaml")) for n in names])


ROLES = "roles: [{id: x, instructions: [a]}, {id: y, instructions: [b]}]"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (OURS.replace("    neg: {instructions: [You are polite.]}\n", ""), "'traits.0.neg' is missing"),
        (OURS.replace('["You are a pirate."]', "[]"), "'roles.0.instructions' list should have at least 1 item"),
        (OURS.replace('["You are a pirate."]', '["  "]'), "'pirate' has an empty instruction"),
        (OURS.replace('"Be\\n rude."', '"You are rude."'), "'rude' has the same instruction twice"),
        (OURS.replace("kind:", "sort:"), "'roles.0.sort' is not a known key"),
        (OURS.replace("id: duo", "name: duo"), "'id' is missing (and 1 more problems)"),
        (OURS.replace("id: duo", "id: 3"), "'id' input should be a valid string"),
        (OURS.replace("id: duo", "id: ''"), "'id' string should have at least 1 character"),
        (OURS.replace("plain: 4", "plain: many"), "'prior.plain' input should be a valid number"),
        (OURS.replace("You are  rude.", "\\ud800"), "'traits.0.pos.instructions.0' holds half of a surrogate pair"),
        (OURS.replace("id: duo", 'id: "\\udc00"'), "'id' input should be a valid string"),
        ("", "must hold a mapping"),
        ("- id: a", "must hold a mapping"),
        ("just words", "must hold a mapping"),
        ("1: 2", "'id' is missing"),
    ],
)
def test_files_that_break_the_format(body: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, body)
    assert str(caught.value).startswith(f"{tmp_path / 'cast.yaml'}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "body", "line", "words"),
    [
        ("cast.yaml", "id: a\nroles: [\n", 3, "broken YAML"),
        ("cast.yaml", "id: a\n\tdescription: b\n", 2, "broken YAML"),
        ("cast.yaml", f"id: a\n{ROLES}\nid: b\n", 3, "the key 'id' is given twice"),
        ("cast.yaml", "id: *nothing\n", 1, "broken YAML: found undefined alias"),
        ("cast.yaml", "id: a\0b", None, "broken YAML"),
        ("cast.yaml", b"id: caf\xe9", None, "not UTF-8"),
        ("cast.yaml", "id: 2020-13-45", None, "month must be in 1..12"),
        ("cast.yaml", "[" * 1200, None, "a value that cannot be read"),
        ("cast.json", '{"id": "a",\n "roles": }', 2, "broken JSON: Expecting value"),
        ("cast.json", "[" * 100_000, None, "a value that cannot be read"),
        ("cast.json", "9" * 5000, None, "a value that cannot be read"),
    ],
)
def test_files_that_cannot_be_parsed(
    name: str, body: str | bytes, line: int | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path, body, name)
    assert (caught.value.path, caught.value.line) == (str(tmp_path / name), line)


def test_tags_are_refused_not_executed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for tag in (f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{victim}]]", "!x 1"):
        with pytest.raises(InputError, match="line 2: broken YAML: could not determine a constructor"):
            load(tmp_path, f"id: a\ndescription: {tag}\n{ROLES}")
    assert not victim.exists()


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "'instruction' list should have at least 1 item"),
        ([("A.", "B."), ("C.", None)], "some instructions lack a pole"),
        ([("A.", "B."), ("", "C.")], "some instructions lack a pole"),
        ([("A.", "B."), ("C.", "")], "some instructions lack a pole"),
        ([("A.", "B."), ("C.", "  ")], "'trait' has an empty instruction"),
        ([("A.", "B."), ("A.", "C.")], "'trait' has the same instruction twice"),
    ],
)
def test_trait_files_that_break_the_format(pairs: list[tuple[str, str | None]], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        load(tmp_path, axis(*pairs), "trait.json")


def test_an_instruction_without_its_positive_pole(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'instruction.1.pos' is missing"):
        load(tmp_path, json.dumps({"instruction": [{"pos": "A."}, {"neg": "B."}]}), "role.json")


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("id: a\nroles: [{id: x, instructions: [a]}]", InputError, "has only 1 persona; a comparison needs two"),
        ("id: a", InputError, "has only 0 persona"),
        ("id: a\nroles: [{id: x, instructions: [a]}, {id: x, instructions: [b]}]", DuplicatePersona, "the id 'x'"),
        (OURS.replace("id: pirate", "id: rude"), DuplicatePersona, "the id 'rude'"),
        (OURS.replace("id: pirate", "id: plain"), DuplicatePersona, "the id 'plain'"),
        (OURS.replace("id: pirate", "id: background"), DuplicatePersona, "the id 'background'"),
        (OURS.replace("id: pirate", "id: rude/neg"), DuplicatePersona, "named like a pole"),
        (OURS.replace("plain: 4", "sailor: 4"), UnknownPersona, "a prior to unknown personas: sailor"),
        (OURS.replace("plain: 4", "plain: -4"), InvalidSettings, "finite and not negative"),
        (OURS.replace("plain: 4", "plain: .nan"), InvalidSettings, "finite and not negative"),
        (
            f"id: a\n{ROLES}\nprior: {{x: 0, y: 0, plain: 0, background: 0}}",
            InvalidSettings,
            "a sum that is finite and above 0",
        ),
        (f"id: a\n{ROLES}\nprior: {{x: 1.0e+308, y: 1.0e+308}}", InvalidSettings, "a sum that is finite and above 0"),
    ],
)
def test_casts_that_make_no_sense(body: str, error: type[PersonaeError], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        load(tmp_path, body)


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UnknownPersona, match="there is no cast 'heroes'") as caught:
        load_casts(["heroes"])
    assert "core" in caught.value.hint
    with pytest.raises(InputError, match=r"holds no .json or .yaml cast files"):
        load_casts([str(tmp_path)])


@pytest.fixture(scope="module")
def core() -> Cast:
    return load_casts(["core"])


def test_the_core_cast_has_what_is_promised(core: Cast) -> None:
    assert "core" in built_in_casts()
    assert len(core.traits) >= 24
    assert len(core.roles) >= 24
    assert {t.id for t in core.traits} >= REQUIRED_TRAITS
    assert core.description
    assert not core.prior


def test_every_core_persona_is_given_in_several_words(core: Cast) -> None:
    for trait in core.traits:
        assert trait.description, trait.id
        assert len(trait.pos.instructions) == len(trait.neg.instructions) >= 3, trait.id
        assert trait.pos.label != trait.neg.label
    for role in core.roles:
        assert len(role.instructions) >= 3, role.id
    texts = [i for p in core.personas for i in p.instructions]
    assert len(set(texts)) == len(texts)
    assert len({p.label for p in core.personas}) == len(core.personas)


def test_the_poles_of_core_traits_are_mirrored_in_length(core: Cast) -> None:
    for trait in core.traits:
        pos = np.array([len(i.split()) for i in trait.pos.instructions])
        neg = np.array([len(i.split()) for i in trait.neg.instructions])
        assert np.abs(pos - neg).max() <= 6, trait.id
        assert abs(pos.sum() / neg.sum() - 1) <= 0.1, trait.id


@pytest.mark.skipif(not COLLECTION.is_dir(), reason="the Assistant-Axis collection is not beside this checkout")
@pytest.mark.parametrize("kind", ["roles", "traits"])
def test_a_published_collection_is_read_whole(kind: str) -> None:
    folder = COLLECTION / kind
    cast = load_casts([str(folder)])
    found = cast.roles if kind == "roles" else cast.traits
    assert [p.id for p in found] == sorted(p.stem for p in folder.glob("*.json"))
    assert not (cast.traits if kind == "roles" else cast.roles)
    for persona in cast.personas[:-1]:
        assert len(persona.instructions) == (4 if persona.id == "default" else 5), persona.id
