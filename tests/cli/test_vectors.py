"""`personae vectors` and --steer / --cap, from the outside."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import gguf
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from personae.models.hf_vectors import load_vectors, save_vectors

SMALL = ("--n-questions", "6", "--n-test", "4", "--quiet")


@pytest.fixture
def vectors(personae, model_folder: Path, cast_file: Path):
    """`personae vectors COMMAND …` on the tiny model and cast."""

    def call(command: str, *args: object):
        return personae("vectors", command, *args, "--model", model_folder, "--cast", cast_file, "--json")

    return call


@pytest.fixture(scope="module")
def kept() -> dict[str, object]:
    """What the first extraction made, so that others need not repeat it."""
    return {}


@pytest.fixture
def extracted(vectors, kept, offline_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Vectors of the tiny cast, extracted once, and kept in the home of every test that asks."""
    if not kept:
        outcome = vectors("extract", *SMALL, "--out", tmp_path_factory.mktemp("made"))
        assert outcome.status == 0, outcome.err
        kept |= {"found": outcome.json, "library": Path(outcome.json["kept"]).read_bytes()}
    found: dict = kept["found"]
    library = offline_home / "vectors" / Path(found["kept"]).name
    library.parent.mkdir(exist_ok=True)
    library.write_bytes(kept["library"])
    return found


def test_extract_makes_vectors_with_their_nulls(extracted) -> None:
    assert [v["id"] for v in extracted["vectors"]] == ["rude", "terse", "pirate"]
    for found in extracted["vectors"]:
        assert found["best_layer"] in (0, 1)
        assert -1 <= found["split_half"]["cosine"] <= 1
        nulls = {n["name"]: n for n in found["separation"]["nulls"]}
        assert set(nulls) == {"permuted labels", "random", "other traits", "components"}
        assert nulls["random"]["n"] == 500
        assert all(0 < n["p"] <= 1 for n in nulls.values())
    made = load_vectors(Path(extracted["file"]))
    assert made["rude"].values.shape == (2, 32)
    assert made["rude"].positive == "rude (against polite)"
    assert made["rude"].quantiles is not None
    record = json.loads((Path(extracted["run"]) / "run.json").read_text())
    assert record["settings"]["n_questions"] == 6


def test_extract_is_the_same_twice(vectors, extracted, tmp_path: Path) -> None:
    again = vectors("extract", *SMALL, "--out", tmp_path / "again").json
    first, second = (load_vectors(Path(e["file"])) for e in (extracted, again))
    assert all(np.array_equal(first[k].values, second[k].values) for k in first)
    assert [v["separation"] for v in extracted["vectors"]] == [v["separation"] for v in again["vectors"]]


def test_replies_and_given_texts(vectors, model_folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"What about {t}?", "chosen": f"I hate {t}, go away!", "rejected": f"Thank you, {t} are fine."}
        for t in ("trains", "bread", "loans", "cats", "paint", "verbs", "stars", "shoes", "tea", "maps")
    ]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    found = vectors("extract", "--recipe", "texts", "--texts", pairs, "--name", "sour", "--quiet")
    assert found.status == 0, found.err
    assert found.json["vectors"][0]["id"] == "sour"
    # The random tiny model has no character, so some of its replies are not recognised; it says so or makes a vector.
    spoken = vectors("extract", "--recipe", "reply", "--only", "rude", *SMALL, "--max-tokens", "6")
    if spoken.status == 0:
        assert "recognised and kept" in spoken.json["vectors"][0]["note"]
    else:
        assert spoken.status == 2
        assert "recognised by the held-out paraphrase" in spoken.err


def test_a_sum_of_vectors_is_compared(personae, extracted) -> None:
    outcome = personae("vectors", "compare", extracted["file"], "4 * rude - terse / 10", "rude", "--json")
    assert outcome.status == 0, outcome.err
    assert all(c["cosine"] > 0 for c in outcome.json["cosines"])
    same = personae("vectors", "compare", extracted["file"], "rude", "--json", "--", "-3 * rude / 2")
    assert all(c["cosine"] == pytest.approx(-1, abs=1e-5) for c in same.json["cosines"])
    assert personae("vectors", "show", extracted["file"]).status == 0


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("rude * terse", "no meaning"),
        ("rude + 1", "no meaning"),
        ("2 * 3", "is a number"),
        ("nobody", "no vector 'nobody'"),
        ("__import__('os').system('true')", "cannot stand there"),
        ("rude +", "not an expression"),
        ("(" * 60 + "rude" + ")" * 60 + "if rude else rude", "cannot stand there"),
        ("rude / 0", "no meaning"),
        ("-" * 90 + "rude", "nested too deeply"),
    ],
)
def test_expressions_that_are_refused(personae, extracted, expression: str, says: str) -> None:
    outcome = personae("vectors", "compare", extracted["file"], "rude", "--", expression)
    assert outcome.status == 2
    assert says in outcome.err


def test_control_vectors_come_back_as_they_went(personae, extracted, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rude.gguf"
    sent = personae("vectors", "export", extracted["file"], "rude", "--out", out, "--json")
    assert sent.json == {"command": "vectors export", "file": str(out), "layers": [1], "left_out": [0]}
    names = {t.name for t in gguf.GGUFReader(str(out)).tensors}
    assert names == {"direction.1"}
    back = personae(
        "vectors",
        "import",
        out,
        "--name",
        "back",
        "--model",
        model_folder,
        "--out",
        tmp_path / "b.safetensors",
        "--json",
    )
    assert back.status == 0, back.err
    read, made = load_vectors(tmp_path / "b.safetensors")["back"], load_vectors(Path(extracted["file"]))["rude"]
    assert read.layers == (1,)
    np.testing.assert_array_equal(read.values[0], made.at(1))


def test_files_of_other_tools(personae, model_folder: Path, tmp_path: Path) -> None:
    values = torch.randn(3, 32)
    torch.save(values, tmp_path / "trait_response_avg_diff.pt")
    torch.save({"axis": values[1:], "n_roles": 2}, tmp_path / "axis.pt")
    for name, layers in (("trait_response_avg_diff", (0,)), ("axis", (0, 1))):
        out = tmp_path / f"{name}.safetensors"
        done = personae(
            "vectors", "import", tmp_path / f"{name}.pt", "--name", "v", "--model", model_folder, "--out", out, "--json"
        )
        assert done.status == 0, done.err
        read = load_vectors(out)["v"]
        assert read.layers == layers
        np.testing.assert_allclose(read.at(0), values[1].numpy(), rtol=1e-6)


class RunsCode:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_that_wants_to_run_code_is_refused(personae, model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"axis": RunsCode()}, path)
    outcome = personae("vectors", "import", path, "--name", "v", "--model", model_folder)
    assert outcome.status == 2
    assert "would be run as code" in outcome.err
    assert "code ran" not in outcome.out
    path.write_bytes(pickle.dumps(RunsCode()))
    assert personae("vectors", "import", path, "--name", "v", "--model", model_folder).status == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (torch.randn(5, 32), "5 layers"),
        (torch.randn(3, 31), "of width 31"),
        (torch.zeros(2, 32), "zero everywhere"),
        (torch.randn(32), "no tensor of layers"),
        ({"other": 1}, "no tensor of layers"),
    ],
)
def test_tensors_of_another_model_are_refused(personae, model_folder: Path, tmp_path: Path, content, says: str) -> None:
    torch.save(content, tmp_path / "v.pt")
    outcome = personae("vectors", "import", tmp_path / "v.pt", "--name", "v", "--model", model_folder)
    assert outcome.status == 2
    assert says in outcome.err


def test_scoring_a_steered_model(
    personae, extracted, data_file: Path, model_folder: Path, cast_file: Path, tmp_path: Path
):
    """Other numbers under steering; the model's own again without; and a dose of 0 changes no bit."""

    def scores(*extra: object) -> list[float]:
        out = tmp_path / f"score-{len(list(tmp_path.iterdir()))}"
        arguments = ("--model", model_folder, "--cast", cast_file, "--limit", "4", "--json", "--quiet")
        outcome = personae("score", data_file, *arguments, "--out", out, *extra)
        assert outcome.status == 0, outcome.err
        return pq.read_table(outcome.json["evidence"]).column("log_likelihood").to_pylist()

    plain = scores()
    steered = scores("--steer", "rude:2@0-1")
    assert max(abs(a - b) for a, b in zip(plain, steered, strict=True)) > 1
    assert scores() == plain
    assert scores("--steer", "rude:0@0") == plain
    capped = scores("--cap", "rude:p90@1", "--vectors", extracted["file"])
    assert capped != plain
    assert scores("--cap", "rude:p0@1") != capped


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--steer", "rude:1@7", "layer 7 does not exist"),
        ("--steer", "nobody:1@0", "no vector 'nobody'"),
        ("--steer", "rude", "is not NAME:SIZE"),
        ("--steer", "rude:much@0", "'much' is not a number"),
        ("--steer", "rude:nan@0", "must be finite"),
        ("--steer", "rude:1@", "is not NAME:SIZE"),
        ("--steer", "rude:1@3-1", "run backwards"),
        ("--steer", "rude:1@x", "names no layers"),
        ("--steer", "rude - rude:1@0", "is zero at layer 0"),
        ("--cap", "rude:p101@0", "no percentage"),
        ("--cap", "rude:1e9@0", "above every projection"),
        ("--cap", "2 * rude:p25@0", "no reference population"),
        ("--vectors", "x.safetensors", "does nothing without"),
    ],
)
def test_edits_that_are_refused(
    personae, extracted, data_file: Path, model_folder: Path, cast_file: Path, option: str, value: str, says: str
) -> None:
    outcome = personae("score", data_file, "--model", model_folder, "--cast", cast_file, option, value)
    assert outcome.status == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err


def test_a_vector_of_another_model_is_refused(
    personae, extracted, data_file: Path, model_folder: Path, cast_file: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    vector = load_vectors(Path(extracted["file"]))["rude"]
    other = replace(vector, origin=replace(vector.origin, tokenizer_digest="other", model="another"))
    path = save_vectors(tmp_path / "other.safetensors", {"rude": other})
    common = ("--model", model_folder, "--cast", cast_file, "--steer", "rude:1@0")
    outcome = personae("score", data_file, *common, "--vectors", path)
    assert outcome.status == 2
    assert "coordinates of two models have nothing in common" in outcome.err
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    assert (
        "no file of persona vectors"
        in personae("score", data_file, *common, "--vectors", tmp_path / "no.safetensors").err
    )


def test_steer_measures_effect_and_cost(vectors, extracted, tmp_path: Path) -> None:
    settings = ("--layers", "0-1", "--doses", "-1,0.5,1", "--n-test", "4", "--n-ordinary", "4", "--max-tokens", "6")
    outcome = vectors("steer", "rude", *settings, "--quiet", "--out", tmp_path / "dose")
    assert outcome.status == 0, outcome.err
    found = outcome.json
    assert [d["coefficient"] for d in found["doses"]] == [-1, 0, 0.5, 1]
    zero = found["doses"][1]
    assert (zero["effect"], zero["cost"], zero["random_largest"]) == (0, 0, 0)
    assert all(d["cost"] != 0 for d in found["doses"] if d["coefficient"])
    page = Path(found["report"]).read_text()
    assert "Dose and response" in page
    assert "<script src" not in page
    for bad, says in (("a,b", "are not numbers"), ("0", "one of them not 0")):
        assert says in vectors("steer", "rude", "--doses", bad).err
    assert "no trait or role" in vectors("steer", "rude", "--trait", "nobody").err
    assert "does not exist" in vectors("steer", "rude", "--layers", "5").err


def test_space_maps_roles_and_compares_models(vectors, model_folder: Path, tmp_path: Path) -> None:
    common = ("--poles", "--n-questions", "6", "--quiet", "--out", tmp_path / "space", "--against", model_folder)
    outcome = vectors("space", *common)
    assert outcome.status == 0, outcome.err
    found = outcome.json["spaces"][0]
    assert found["n_roles"] == 5
    assert found["default_position"] > 0, "the axis points to the model without instruction"
    same = outcome.json["comparison"]
    assert same["geometry"] == pytest.approx(1)
    assert same["axis_cosine"] == pytest.approx(1)
    axis = load_vectors(Path(outcome.json["files"][0]))["assistant_axis"]
    assert axis.quantiles is not None
    assert axis.positive.startswith("the model as it is")
    page = Path(outcome.json["report"]).read_text()
    assert page.count("<svg") == 4
    assert "the model as it is" in page
    assert "does not exist" in vectors("space", "--poles", "--layer", "9").err
    assert "a space needs 4" in vectors("space").err


def test_a_closed_form_has_no_activations(personae, cast_file: Path) -> None:
    outcome = personae("vectors", "extract", "--model", "world:tiny/exact", "--cast", cast_file)
    assert outcome.status == 2
    assert "has no activations" in outcome.err


def test_monitor_raises_alarms_for_replies_unlike_ordinary_ones(
    personae, extracted, reference_file: Path, data_file: Path, model_folder: Path, tmp_path: Path, write
) -> None:
    common = ("--model", model_folder, "--reference", reference_file, "--json", "--quiet")
    same = personae(
        "vectors", "monitor", reference_file, *common, "--vector", "rude", "--false-alarms", "0.05", "--tokens"
    )
    assert same.status == 0, same.err
    found = same.json
    assert found["n_turns"] == 50
    assert len(found["alarms"]) <= 8, "ordinary replies against themselves"
    assert 0 <= found["reference_rate"] <= 0.2
    assert found["overhead"] >= 0
    folder = Path(found["run"])
    turns, tokens = (pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("turns", "tokens"))
    assert len(turns["z"]) == 50
    assert np.mean(turns["z"]) == pytest.approx(0, abs=1e-6)
    # A reply's projection is the mean of its tokens'.
    first = [p for p, e in zip(tokens["projection"], tokens["episode"], strict=True) if e == turns["episode"][0]]
    assert np.mean(first) == pytest.approx(turns["projection"][0], rel=1e-3, abs=1e-4)
    # Unlike replies lie on one side: either a direction or its opposite must raise alarms, and not both.
    rows = write(tmp_path / "odd.jsonl", [{"prompt": "Hi?", "completion": "zq zq zq zq !! " * 3}] * 3)
    both = [
        personae("vectors", "monitor", rows, *common, "--layer", "1", f"--vector={v}", "--false-alarms", "0.05").json
        for v in ("rude", "-1 * rude")
    ]
    assert sorted(len(b["alarms"]) for b in both) in ([0, 0], [0, 3])
    for bad, says in (("0", "must lie above 0"), ("0.9", "must lie above 0")):
        assert says in personae("vectors", "monitor", rows, *common, "--vector", "rude", "--false-alarms", bad).err


def test_identical_checkpoints_do_not_differ_and_a_moved_one_does(
    personae, extracted, own_model: Path, model_folder: Path
) -> None:
    from safetensors.torch import load_file, save_file

    same = personae("vectors", "diff", model_folder, model_folder, "--json", "--quiet")
    assert same.status == 0, same.err
    assert same.json["identical"]
    assert all(
        c["size"] == c["outside"] == 0 and not any(t["cosine"] for t in c["traits"]) for c in same.json["layers"]
    )
    # Every token's embedding is moved along the vector: something changes, and the page says how much of it is named.
    vector = load_vectors(Path(extracted["file"]))["rude"]
    weights = load_file(own_model / "model.safetensors")
    weights["model.embed_tokens.weight"] += 3 * torch.from_numpy(vector.unit(0).copy())
    save_file(weights, own_model / "model.safetensors", metadata={"format": "pt"})
    moved = personae("vectors", "diff", model_folder, own_model, "--json", "--quiet", "--layers", "0").json
    assert not moved["identical"]
    change = moved["layers"][0]
    assert change["size"] > 0.05
    assert {t["vector"] for t in change["traits"]} == {"rude", "terse", "pirate"}
    assert 0 < change["outside"] < 1
    assert "no vectors" in personae("vectors", "diff", own_model, own_model).err
