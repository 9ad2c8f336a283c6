"""`personae sharpen` as a user meets it: files, outcome, a second time, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from benchmarks import separation

from personae.cli.commands.sharpen import DEFAULT_CASTS
from personae.errors import CorruptModel, InvalidSettings
from personae.files.casts import load_casts
from personae.files.diagnostics import load_diagnostics, load_texts
from personae.instruments.sharpening import texts_of
from personae.models.catalogue import SCORERS
from personae.models.hf_adapter import check_note

WORDS = ("bread", "trains", "cats", "paint", "verbs", "stars")
FAST = ("--steps", 4, "--learning-rate", 0.01, "--rank", 4, "--device", "cpu")


@pytest.fixture
def material(tmp_path: Path) -> tuple[Path, Path]:
    """A cast of six traits and what their poles say."""
    traits = "".join(
        f"""
  - id: {w}
    pos: {{instructions: ["You like {w}.", "This speaker likes {w}."]}}
    neg: {{instructions: ["You hate {w}.", "This speaker hates {w}."]}}"""
        for w in WORDS
    )
    cast = tmp_path / "words.yaml"
    cast.write_text(f"id: words\ntraits:{traits}\n")
    rows = [
        {"trait": w, "kind": "reply", "prompt": f"{k}?", "pos": f"More {w}, {k}.", "neg": f"No {w}, {k}."}
        for w in WORDS
        for k in range(3)
    ]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return cast, texts


@pytest.fixture
def sharpen(personae, model_folder: Path, material: tuple[Path, Path]):
    """`personae sharpen` with the tiny model, a few steps."""
    cast, texts = material

    def run(*more: object):
        return personae("sharpen", model_folder, "--cast", cast, "--items", texts, *FAST, *more)

    return run


def test_a_scorer_is_sharpened_and_used(
    sharpen, personae, data_file: Path, cast_file: Path, model_folder: Path
) -> None:
    done = sharpen("--out", "run", "--json")
    assert done.status == 0
    r = done.json
    assert r["notes"] == []
    assert (r["command"], r["n_steps"], r["n_traits"], len(r["held_out"])) == ("sharpen", 4, 4, 2)
    assert r["n_texts"] == 4 * 6
    assert r["use"] == f"{model_folder}+run/adapter"
    low, high = r["gain"]["ci"]
    assert low <= r["gain"]["value"] <= high
    assert r["gain"]["value"] == pytest.approx(r["auroc_after"] - r["auroc_before"], abs=1e-3)
    assert json.loads(Path("run/run.json").read_text())["result"] == r
    scored = personae("score", data_file, "--model", r["use"], "--cast", cast_file, "--json", "--limit", 2)
    assert scored.status == 0
    # It is no training that `verify` could judge.
    judged = personae("verify", "run")
    assert judged.status == 2
    assert "not of a training" in judged.err


def test_a_sharpened_scorer_is_never_the_model_under_study(
    sharpen, personae, screen, data_file: Path, cast_file: Path, model_folder: Path, reference_file: Path
) -> None:
    use = sharpen("--out", "run", "--json").json["use"]
    for call in (
        ("measure", use),
        ("measure", model_folder, "--versus", use),
        ("profile", use),
        ("profile", model_folder, "--versus", use),
        ("audit", use, "--base", model_folder),
        ("train", data_file, "--model", use),
        ("profile", model_folder, "--scorer", use),
        ("vectors", "extract", "--model", use),
        ("screen", data_file, "--model", model_folder, "--target", use),
    ):
        refused = personae(*call, "--out", "none")
        assert refused.status == 2, call
        assert "is a sharpened scorer" in refused.err
        assert f"Name the model it was made of, {model_folder}" in refused.err.replace("\n", " ")
        assert not Path("none").exists()
    # It reads a file; what a training would do is asked of the model it was made of.
    options = ("--cast", cast_file, "--reference", reference_file, "--forecaster", "llr", "--json")
    read = personae("screen", data_file, "--model", use, *options)
    assert read.status == 0, read.err
    assert read.json["model"] == use
    assert any("learnt to tell characters apart" in n for n in read.json["notes"])
    assert any(
        n == f"The forecast is of a training of {model_folder}, which {use} was made of." for n in read.json["notes"]
    )
    quick = personae("screen", data_file, "--model", use, *options[:4], "--json")
    assert quick.json["forecast"] is None
    assert quick.err.count("Loading") == 1
    plain = personae("screen", data_file, "--model", model_folder, *options)
    assert not any("learnt to tell" in n for n in plain.json["notes"])
    shifts = [[t["shift"] for t in r.json["forecast"]["traits"]] for r in (read, plain)]
    assert shifts[0] == shifts[1]
    assert [t["shift"] for t in read.json["traits"]] != [t["shift"] for t in plain.json["traits"]]


def test_a_shipped_scorer_fits_whatever_version_wrote_its_base(tmp_path: Path) -> None:
    """The digest of a dequantised folder names the version of transformers; the package's checksum is what counts."""
    folder = SCORERS["smollm2-sharp"].folder
    check_note(folder, "smollm2-sharp", "another digest")
    with pytest.raises(InvalidSettings, match="was made for 'smollm2'"):
        check_note(folder, f"smollm2+{folder}", "another digest")
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "adapter_config.json").write_text("{}")
    with pytest.raises(CorruptModel, match="does not match its checksum") as told:
        check_note(damaged, "smollm2-sharp", "")
    assert told.value.hint == "Install personae again."


def test_the_same_command_is_not_done_twice_and_rerun_repeats_it(sharpen, personae) -> None:
    first = sharpen("--out", "one")
    assert first.status == 0
    assert "left out      2 traits" in first.out
    assert first.out.splitlines()[-1].startswith("Use it to score, never as the model under study")
    again = sharpen("--out", "one")
    assert "done already" in again.err
    assert again.out == first.out
    assert personae("rerun", "one", "--out", "two", "--quiet").status == 0
    a, b = (Path(n, "adapter", "adapter_model.safetensors").read_bytes() for n in ("one", "two"))
    assert a == b
    other = sharpen("--out", "one", "--seed", 1)
    assert other.status == 2
    assert "holds another run" in other.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--held-out", 0), "--held-out is 0.0; it must be above 0 and below 1"),
        (("--learning-rate", 0), "--learning-rate is 0.0"),
        (("--only", "bread,cats"), "only 2 traits"),
        (("--only", "bread,dogs"), "no trait or role named dogs"),
        (("--items", "none.jsonl"), "none.jsonl"),
        (("--cast", "nobody"), "there is no cast 'nobody'"),
    ],
)
def test_bad_input_is_named(sharpen, more: tuple[object, ...], said: str) -> None:
    done = sharpen("--out", "run", *more)
    assert done.status == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert not Path("run").exists()


def test_what_cannot_be_sharpened_is_said_before_anything_is_loaded(personae, material: tuple[Path, Path]) -> None:
    cast, _ = material
    without = personae("sharpen", "smollm2", "--cast", cast)
    assert without.status == 2
    assert "comes without texts" in without.err
    served = personae("sharpen", "http://localhost:1/v1#x")
    assert served.status == 2
    assert "cannot be trained" in served.err


def test_the_shipped_casts_have_texts_for_every_trait() -> None:
    casts = load_casts(DEFAULT_CASTS)
    texts, paths = load_texts(DEFAULT_CASTS)
    assert set(texts.traits) == {t.id for t in casts.traits}
    assert [p.parent.name for p in paths] == ["texts", "diagnostics"]
    for trait in casts.traits:
        mine = [i for i in texts.items if i.trait == trait.id]
        assert len(mine) >= 6
    # A trait left out is judged on more than one text a pole, and all paraphrases teach.
    for of in texts_of(casts, texts).values():
        assert of.n_unquoted(of.judging) >= 4
        assert len(of.judging) == 2
        assert len(of.usable) == of.n_paraphrases
    # By the test half fine-tunes are judged.
    test = {i.id for i in load_diagnostics("core").select(split="test").items}
    assert not test & {i.id for i in texts.items}
    # Behaviours that judge a sharpened scorer are not among those it learns from.
    judges = Path(separation.__file__).with_name("order.txt").read_text().split()[42:]
    assert len(judges) == 30
    assert not {t.id for t in casts.traits} & set(judges)
