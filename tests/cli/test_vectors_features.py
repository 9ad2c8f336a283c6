"""`personae vectors features` and `personae vectors conditions`, from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from drawn_sae import write_sae

SHORT = ("--json", "--quiet")


@pytest.fixture(scope="session")
def sae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sae(tmp_path_factory.mktemp("sae"))


def test_nothing_moves_between_a_model_and_itself(
    personae, model_folder: Path, sae_folder: Path, reference_file: Path
) -> None:
    call = ("vectors", "features", model_folder, model_folder, "--sae", sae_folder, "--texts", reference_file)
    found = personae(*call, *SHORT)
    assert found.status == 0, found.err
    assert found.json["identical"] is True
    assert (found.json["latents"], found.json["moved"]) == ([], 0)
    assert found.json["sae"]["layer"] == 1
    assert "no latent moved" in personae(*call).out


def test_training_moves_latents_and_texts_are_shown(
    personae, model_folder: Path, sae_folder: Path, reference_file: Path, data_file: Path
) -> None:
    trained = personae(
        *("train", data_file, "--model", model_folder, "--steps", 6, "--learning-rate", "0.01", "--batch-size", 4),
        *("--device", "cpu", "--out", "tuned", "--quiet"),
    )
    assert trained.status == 0, trained.err
    call = ("vectors", "features", model_folder, f"{model_folder}+tuned", "--sae", sae_folder)
    found = personae(*call, "--texts", reference_file, "--top", 3, "--out", "run", *SHORT)
    assert found.status == 0, found.err
    assert found.json["identical"] is False
    assert found.json["n_topics"] == 10
    assert 0 < len(found.json["latents"]) <= 3
    first = found.json["latents"][0]
    assert first["size"] > 0
    assert first["p"] <= 0.05, "six steps at this rate move every reply alike"
    assert all(t["activation"] > 0 and t["token"] for latent in found.json["latents"] for t in latent["texts"])
    table = pq.read_table("run/latents.parquet")
    assert table["latent"][0].as_py() == first["latent"]
    assert json.loads(Path("run/run.json").read_text())["sae_digest"]
    shown = personae(*call, "--texts", reference_file)
    assert "live latents moved" in shown.out


@pytest.mark.parametrize(
    ("make", "more", "status", "words"),
    [
        ({"d_in": 16}, (), 2, "of width 16"),
        ({"hook": "blocks.5.hook_resid_post"}, (), 2, "2 blocks of width 32"),
        ({"hook": "blocks.1.hook_mlp_out"}, (), 2, "not the output of a block"),
        ({"kind": "gated"}, (), 3, "sae-lens"),
        ({}, ("--limit", "5"), 2, "topics cannot show what moves"),
    ],
)
def test_autoencoders_that_do_not_fit(
    personae, model_folder: Path, reference_file: Path, tmp_path: Path, make, more, status: int, words: str
) -> None:
    folder = write_sae(tmp_path / "sae", **make)
    found = personae(
        "vectors", "features", model_folder, model_folder, "--sae", folder, "--texts", reference_file, *more
    )
    assert found.status in (status, 2), found.err
    assert words in found.err


def test_conditions_judge_a_vector_within_types(personae, model_folder: Path, tmp_path: Path) -> None:
    """A random model: whatever it says, the nulls are there and the prompts are written down."""
    found = personae(
        *("vectors", "conditions", "--model", model_folder, "--only", "contemptuous,formal", "--n-prompts", 3),
        *("--n-items", 4, "--n-questions", 4, "--out", "run", *SHORT),
    )
    assert found.status == 0, found.err
    kinds = [(t["id"], t["vector"]) for t in found.json["traits"]]
    assert kinds == [(t, v) for t in ("contemptuous", "formal") for v in ("difference", "gradient")]
    for trait in found.json["traits"]:
        for kind in ("pooled", "within"):
            assert -1 <= trait[kind]["r"] <= 1
            assert {n["name"] for n in trait[kind]["nulls"]} == {
                "permuted labels", "random", "other traits", "components",
            }  # fmt: skip
        own = {"told to", "told not to", "shown"}
        other = "formal" if trait["id"] == "contemptuous" else "contemptuous"
        assert set(trait["by_type"]) == own | {f"{t}: {other}" for t in own} | {"told else", "plain"}
        assert 0 <= trait["share_of_types"] <= 1
    rows = pq.read_table("run/prompts.parquet").to_pylist()
    # Two wordings and twice three shares about each of two traits, three prompts of each type about neither; both
    # traits under all of them.
    assert len(rows) == 2 * (2 * (3 + 3 + 6) + 3 + 3)
    shown = [r for r in rows if r["type"] == "shown"]
    assert {r["shots"] for r in rows} == {0, 2}, "as many replies are shown whatever their share"
    assert [r["positive_shots"] for r in shown if r["trait"] == "formal"] == [0, 1, 2] * 2
    assert {r["about"] for r in shown} == {"contemptuous", "formal"}
    short = personae("vectors", "conditions", "--model", model_folder, "--only", "formal")
    assert short.status == 2
    assert "at least two traits" in short.err
    few = [
        {"trait": t, "kind": "reply", "prompt": f"{k}?", "pos": "yes", "neg": "no"}
        for k in range(6)
        for t in ("a", "b")
    ]
    Path("few.jsonl").write_text("".join(json.dumps(r) + "\n" for r in few))
    cast = {
        "id": "own",
        "traits": [
            {"id": t, **{p: {"label": p, "instructions": [f"Be {t} {p}."]} for p in ("pos", "neg")}} for t in ("a", "b")
        ],
    }
    Path("own.yaml").write_text(json.dumps(cast))
    call = ("vectors", "conditions", "--model", model_folder, "--cast", "own.yaml", "--items", "few.jsonl")
    unsplit = personae(*call)
    assert unsplit.status == 2
    assert "'a' has 0 items of kind 'reply' with split 'dev'" in unsplit.err
    world = personae("vectors", "conditions", "--model", "world:tiny/exact", "--only", "formal,contemptuous")
    assert world.status != 0


def test_a_push_is_made_from_written_replies_and_steers(personae, model_folder: Path) -> None:
    found = personae(
        *("vectors", "push", "--model", model_folder, "--only", "contemptuous,formal", "--n-ordinary", 10),
        *("--out", "run", *SHORT),
    )
    assert found.status == 0, found.err
    assert [v["id"] for v in found.json["vectors"]] == ["contemptuous_push", "formal_push"]
    for v in found.json["vectors"]:
        assert v["low"] <= v["effect"] <= v["high"]
        assert 0 < v["p"] <= 1
        assert (v["best_layer"] in (0, 1), v["n_test"]) == (True, 8)
    # What was made of the dev half raises the log-odds of that half: the direction is not turned around.
    call = ("measure", model_folder, "--only", "contemptuous", "--quick", "--split", "dev", "--versus", model_folder)
    moved = personae(*call, "--steer", "contemptuous_push:0.2", *SHORT)
    assert moved.status == 0, moved.err
    assert moved.json["versus"]["changes"][0]["change"] > 0
    few = personae("vectors", "push", "--model", model_folder, "--items", _few(Path("few.jsonl")))
    assert few.status == 2
    assert "in its two halves" in few.err


def _few(path: Path) -> Path:
    row = {"trait": "odd", "kind": "reply", "split": "dev"}
    rows = [row | {"topic": f"t{k}", "prompt": f"{k}?", "pos": "yes", "neg": "no"} for k in range(4)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path
