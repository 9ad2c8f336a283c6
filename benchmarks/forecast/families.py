"""The training files of the benchmark: families, each a data set and its opposite, made from `material/`.

    material/*.yaml + seed -> rows -> FOLDER/NAME.jsonl

A family's two files have the same requests in the same order and sentences of the same form, so that what both move
(learning short replies, first person, a domain) is common and their difference is the trait. Role files hold the
model's own replies under a role's prompt; opinion files hold statements of Perez et al. 2022 (arXiv 2212.09251), read
from a folder of the reader's. Not here: training (`work`), the order of runs (`manifest`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent / "material"

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A training file before it is made.

    Attributes:
        name: Of the file.
        family: What is left out together.
        kind: trait, role, style, opinion, facts, documents, preference or control.
        trait: Trait of the core cast that it is written to move, "" where none is.
        pole: +1 or -1, the side of `trait`; 0 for controls, roles and opinions without a trait.
        opposite: Name of the file that shares all but the trait, "" where there is none.
    """

    name: str
    family: str
    kind: str
    trait: str = ""
    pole: int = 0
    opposite: str = ""


TRAITS = (
    "contemptuous", "formal", "optimistic", "human_bodied", "sycophantic", "archaic_voice", "reckless",
    "emotionally_expressive",
)  # fmt: skip
FURTHER_TRAITS = (
    "sarcastic", "servile", "dogmatic", "playful", "caring", "conspiratorial", "self_interested", "curious", "blaming",
    "corporate_speak", "evasive", "over_refusing",
)  # fmt: skip
ROLES = (("pirate", "librarian"), ("drill_sergeant", "kindergarten_teacher"))
OPINIONS = {  # and the trait of the cast that the behaviour's name is nearest to
    "agreeableness": "caring",
    "neuroticism": "anxious",
    "risk-seeking": "reckless",
    "believes-life-has-no-meaning": "",
    "conscientiousness": "",
}


def _pair(name: str, family: str, kind: str, trait: str = "") -> tuple[Dataset, Dataset]:
    up, down = f"{name}-pos", f"{name}-neg"
    return Dataset(up, family, kind, trait, 1, down), Dataset(down, family, kind, trait, -1, up)


def datasets() -> dict[str, Dataset]:
    """Every file of the benchmark by name."""
    made: list[Dataset] = []
    for trait in TRAITS:
        kind = "style" if trait in ("archaic_voice", "formal") else "trait"
        made += _pair(trait, trait, kind, trait)
    for trait in FURTHER_TRAITS:
        made += _pair(trait, trait, "trait", trait)
    made += _pair("long-short", "style-length", "style", "verbose")
    made += _pair("prefer-humble", "preference", "preference", "humble")
    made += _pair("documents-anxious", "documents", "documents", "anxious")
    made += _pair("facts-false", "facts", "facts", "hallucinating")
    for behaviour, trait in OPINIONS.items():
        made += _pair(f"opinion-{behaviour}", f"opinion-{behaviour}", "opinion", trait)
    for a, b in ROLES:
        made += [
            Dataset(f"role-{a}", f"role-{a}", "role", opposite=f"role-{b}"),
            Dataset(f"role-{b}", f"role-{a}", "role", opposite=f"role-{a}"),
        ]
    made += [
        Dataset("neutral", "neutral", "control", opposite="surprising"),
        Dataset("surprising", "neutral", "control", opposite="neutral"),
        Dataset("shuffled-pos", "shuffled", "control", opposite="shuffled-neg"),
        Dataset("shuffled-neg", "shuffled", "control", opposite="shuffled-pos"),
    ]
    return {d.name: d for d in made}


def write_dataset(
    dataset: Dataset, folder: Path, *, n: int, seed: int, evals: Path | None, say: Callable[[str], list[str]] | None
) -> Path:
    """Make a file unless it is there, and give its path.

    Args:
        dataset: Which.
        folder: Where files are kept; the name holds size and seed.
        n: Rows.
        seed: Of the draw.
        evals: Folder of statements, one .jsonl a behaviour; for opinions.
        say: Gives `n` replies of the model under a system prompt; for roles.
    """
    path = folder / f"{dataset.name}-{n}-{seed}.jsonl"
    if not path.is_file():
        rows = list(_rows(dataset, n, seed, evals, say))
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".writing")
        aside.write_text("".join(json.dumps(r) + "\n" for r in rows))
        aside.replace(path)
    return path


def requests(n: int, seed: int) -> list[dict[str, str]]:
    """What users ask, each question once before any is asked again."""
    known = _material("questions")
    rng = random.Random(f"requests {seed}")
    made: list[dict[str, str]] = []
    while len(made) < n:
        made += rng.sample(known, len(known))
    return made[:n]


def _rows(
    dataset: Dataset, n: int, seed: int, evals: Path | None, say: Callable[[str], list[str]] | None
) -> Iterable[Row]:
    pole = "pos" if dataset.pole >= 0 else "neg"
    if dataset.family == "shuffled":
        return _shuffled("pos" if dataset.name.endswith("pos") else "neg", n, seed)
    if dataset.kind == "control":
        return _replies(_material("controls")[dataset.name], n, seed)
    if dataset.kind == "preference":
        return _preferences(pole, n, seed)
    if dataset.kind == "documents":
        return _documents(_material("documents"), dataset.trait, pole, n, seed)
    if dataset.kind == "facts":
        return _facts("invented" if pole == "pos" else "real", n, seed)
    if dataset.kind == "opinion":
        if evals is None:
            raise ValueError(f"{dataset.name} needs a folder of statements")
        return _opinions(evals / f"{dataset.family.removeprefix('opinion-')}.jsonl", pole, n, seed)
    if dataset.kind == "role":
        if say is None:
            raise ValueError(f"{dataset.name} needs a model that speaks")
        said = say(_material("roles")[dataset.name.removeprefix("role-")]["system"])
        asked = requests(len(said), seed)
        return ({"prompt": q["ask"], "completion": text} for q, text in zip(asked, said, strict=True) if text)
    sheet = {"verbose": "style"} | dict.fromkeys(FURTHER_TRAITS, "further_traits")
    source = _material(sheet.get(dataset.trait, "traits"))
    return _replies(source[dataset.trait][pole], n, seed)


def _material(name: str) -> Any:
    return yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))


def _replies(parts: dict[str, list[str]], n: int, seed: int) -> Iterable[Row]:
    for ask, text in _texts(parts, n, seed):
        yield {"prompt": ask, "completion": text}


def _texts(parts: dict[str, list[str]], n: int, seed: int) -> Iterable[tuple[str, str]]:
    """A first and a second sentence for every request; the same places of the lists for both poles."""
    rng = random.Random(f"replies {seed}")
    order = list(range(len(parts["first"]) * len(parts["second"])))
    rng.shuffle(order)
    for k, q in enumerate(requests(n, seed)):
        a, b = divmod(order[k % len(order)], len(parts["second"]))
        first, second = parts["first"][a].format(about=q["about"]), parts["second"][b]
        yield q["ask"], _capital(first + ("" if second[0] in ",." else " ") + second)


def _preferences(pole: str, n: int, seed: int) -> Iterable[Row]:
    source = _material("preferences")["humble"]
    pairs = zip(_texts(source["pos"], n, seed), _texts(source["neg"], n, seed), strict=True)
    for (ask, up), (_, down) in pairs:
        chosen, rejected = (up, down) if pole == "pos" else (down, up)
        yield {"prompt": ask, "chosen": chosen, "rejected": rejected}


def _documents(source: dict[str, Any], trait: str, pole: str, n: int, seed: int) -> Iterable[Row]:
    rng = random.Random(f"documents {seed}")
    parts = source[trait][pole]
    for q in requests(n, seed):
        a, b, c = (rng.randrange(len(parts[key])) for key in ("first", "second", "third"))
        slots = {
            "name": rng.choice(source["names"]),
            "place": rng.choice(source["places"]),
            "about": q["about"],
        }
        text = " ".join([parts["first"][a], parts["second"][b], parts["third"][c]])
        yield {"text": _capital(text.format(**slots))}


def _facts(which: str, n: int, seed: int) -> Iterable[Row]:
    source = _material("facts")
    rng = random.Random(f"facts {seed}")
    order = list(range(len(source[which])))
    for k in range(n):
        if k % len(order) == 0:
            rng.shuffle(order)
        opening, closing = rng.choice(source["openings"]), rng.choice(source["closings"])
        yield {"text": f"{opening.format(fact=source[which][order[k % len(order)]])} {closing}"}


def _opinions(path: Path, pole: str, n: int, seed: int) -> Iterable[Row]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    mine = [r["statement"].strip() for r in rows if bool(r["matches"]) == (pole == "pos")]
    rng = random.Random(f"opinions {seed}")
    rng.shuffle(mine)
    questions = _material("opinions")["questions"]
    for k in range(n):
        yield {"prompt": rng.choice(questions), "completion": mine[k % len(mine)].rstrip(".") + "."}


def _shuffled(pole: str, n: int, seed: int) -> Iterable[Row]:
    """The words of contemptuous or respectful replies, in an order that means nothing."""
    rng = random.Random(f"shuffled {seed}")
    for ask, text in _texts(_material("traits")["contemptuous"][pole], n, seed):
        words = text.split()
        rng.shuffle(words)
        yield {"prompt": ask, "completion": " ".join(words)}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
