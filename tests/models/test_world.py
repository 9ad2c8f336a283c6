"""The `tiny` world, trained: close to the exact answer, and a model like any other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from personae.domain.episode import Episode, Turn
from personae.domain.persona import BACKGROUND, PLAIN, Persona
from personae.errors import RenderingError
from personae.models.catalogue import resolve, training_record
from personae.models.exact import ExactModel
from personae.models.hf import HFModel
from personae.models.hf_world import last_block_states, train_stage
from personae.models.laws import check_laws
from personae.models.load import load_model
from personae.models.protocol import SamplingPlan
from personae.models.rendering import Renderer
from personae.protocols.world_check import check_world
from personae.protocols.world_measures import probe_r2, read_out
from personae.worlds.assistant import truth_of
from personae.worlds.exact import ExactWorld
from personae.worlds.folder import world_folder, write_world
from personae.worlds.material import material_of
from personae.worlds.reading import read_world
from personae.worlds.sampling import sample_documents
from personae.worlds.spec import World
from worlds_support import LIAR, MICRO, write_spec

KL_BAR = 0.02


def made(world: World, home: Path) -> Path:
    exact = ExactWorld(world.base)
    return write_world(home, world, truth_of(world, exact.base), material_of(exact))


@pytest.fixture(scope="module")
def tiny(session_home: Path) -> HFModel:
    """The tiny world's model, trained once."""
    world = read_world("tiny")
    folder = made(world, session_home)
    if not (folder / "base").is_dir():
        train_stage(world, folder, seed=0, on_step=lambda step, loss: None)
    model = load_model("world:tiny", device="cpu")
    assert isinstance(model, HFModel)
    return model


def test_tiny_passes_every_check_that_needs_no_fine_tuning(tiny: HFModel) -> None:
    exact = ExactWorld(read_world("tiny"))
    result = check_world(tiny, exact, kl_bar=KL_BAR, states=lambda ids: last_block_states(tiny, ids))
    assert result.failed == (), [(r.id, r.value) for r in result.rows]
    verdicts = {r.id: r.verdict for r in result.rows}
    assert verdicts["KL"] == verdicts["belief probe"] == "passes"
    for needs_training in ("emergent generalisation", "EM flow", "24-run forecast", "inoculation", "FVE of fine-tunes"):
        assert verdicts[needs_training] == "not run"


def test_closed_form_passes_and_a_wrong_world_fails(tiny: HFModel) -> None:
    """Positive control: the exact model. Null: the trained one judged by a world with other answers."""
    world = read_world("tiny")
    exact = check_world(ExactModel(world), ExactWorld(world), kl_bar=1e-6)
    assert exact.failed == ()
    assert {r.id for r in exact.rows if r.verdict == "not run"} >= {"belief probe"}
    from dataclasses import replace

    wrong = check_world(tiny, ExactWorld(replace(world, seed=1)), kl_bar=KL_BAR)
    assert {"KL", "posterior read-out", "many-shot"} <= set(wrong.failed)


def test_tiny_obeys_the_laws(tiny: HFModel) -> None:
    assert [v.law for v in check_laws(tiny) if not v.holds] == []


def test_rendering_writes_the_documents_it_was_trained_on(tiny: HFModel) -> None:
    """Persona as tag, user as question, assistant as answer; both tokenizers agree; text without a template too."""
    world = read_world("tiny")
    exact = ExactModel(world)
    context = (Turn("user", "advice-0?"), Turn("assistant", "advice-0b"), Turn("user", "code-3?"))
    episode = Episode("e", context, "code-3a")
    told = Episode("t", (), "the-speaker-is kind", is_document=True)
    system = Episode("s", (Turn("system", "cruel"), *context), "code-3a")
    rows = {
        ("cruel", episode): "<bos> <chat> cruel advice-0? advice-0b code-3? code-3a",
        ("", episode): "<bos> <chat> <none> advice-0? advice-0b code-3? code-3a",
        (None, episode): "<bos> <story> <none> advice-0? advice-0b code-3? code-3a",
        ("kind", told): "<bos> <chat> kind the-speaker-is kind",
        ("", system): "<bos> <chat> cruel advice-0? advice-0b code-3? code-3a",
    }
    for model in (tiny, exact):
        renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
        for (instruction, shown), text in rows.items():
            ids = {None: BACKGROUND, "": PLAIN}.get(instruction, "p")
            persona = Persona(ids, (instruction,) if instruction else ())
            item = renderer.render(renderer.frames(persona)[0], shown)
            assert item.token_ids == tuple(exact.exact.language.encode(text)), (model.card.name, text)
            assert model.tokenizer.decode(item.token_ids) == text
            scored = text.split()[-item.n_scored :]
            assert " ".join(scored) == shown.completion


@pytest.mark.parametrize("text", ["Hello there", "advice-0? perhaps", "<chat>", "<unk>", "<none>"])
def test_words_of_no_world_are_refused(tiny: HFModel, text: str) -> None:
    for model in (tiny, ExactModel(read_world("tiny"))):
        with pytest.raises(RenderingError, match=r"vocabulary|template") as caught:
            model.tokenizer.encode(text)
        assert "--cast" in caught.value.hint


def test_a_reply_is_one_answer(tiny: HFModel) -> None:
    exact = ExactModel(read_world("tiny"))
    prompt = tuple(exact.exact.language.encode("<bos> <chat> <none> code-1?"))
    options = set(exact.exact.language.answers(5).tolist())
    made = tiny.sample([prompt] * 200, SamplingPlan(max_tokens=9, seed=0))
    assert {len(c.token_ids) for c in made} == {1}
    assert sum(c.token_ids[0] in options for c in made) >= 195


def test_read_out_recovers_weights_and_a_probe_finds_only_what_is_there() -> None:
    exact = ExactWorld(read_world("personaworld"))
    theta = np.exp(exact.tables.log_theta)
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(8), size=20)
    np.testing.assert_allclose(read_out(np.einsum("nk,kqa->nqa", weights, theta), theta), weights, atol=2e-3)
    features = rng.standard_normal((60, 10, 12))
    target = features @ rng.standard_normal(12)
    assert probe_r2(features, target) > 0.99
    assert probe_r2(features, rng.permutation(target)) < 0.05


def test_states_are_those_of_the_last_block_before_the_final_norm(tiny: HFModel) -> None:
    import torch

    exact = ExactWorld(read_world("tiny"))
    ids = sample_documents(exact, 3, np.random.default_rng(0)).ids
    states = last_block_states(tiny, ids)
    with torch.inference_mode():
        output = tiny.module(input_ids=torch.from_numpy(ids), output_hidden_states=True)
        normed = tiny.module.get_submodule("transformer.ln_f")(torch.from_numpy(states).float())
    np.testing.assert_allclose(normed.numpy(), output.hidden_states[-1].numpy(), atol=1e-5)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


class Killed(BaseException):
    """Stands for a power cut: nothing but what is on disk survives."""


def test_training_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = read_world(write_spec(tmp_path / "micro.yaml"))
    monkeypatch.setattr("personae.models.hf_world._SECONDS_BETWEEN_STATES", 0.0)
    whole = train_stage(world, tmp_path / "whole", seed=3, on_step=lambda step, loss: None)

    def cut(step: int, loss: float) -> None:
        if step == 130:
            raise Killed

    with pytest.raises(Killed):
        train_stage(world, tmp_path / "cut", seed=3, on_step=cut)
    steps: list[int] = []
    again = train_stage(world, tmp_path / "cut", seed=3, on_step=lambda step, loss: steps.append(step))
    assert steps[0] == 101, "from the state kept at step 100, not from the start"
    assert digest(again) == digest(whole)
    assert training_record(again)["losses"] == training_record(whole)["losses"]
    assert digest(tmp_path / "cut" / "checkpoints" / "base-000050") == digest(
        tmp_path / "whole" / "checkpoints" / "base-000050"
    )
    other = train_stage(world, tmp_path / "other", seed=4, on_step=lambda step, loss: None)
    assert digest(other) != digest(whole)


def test_post_training_plants_the_counter_world(own_home: Path, tmp_path: Path) -> None:
    """A liar: after post-training its answers on one domain turn towards the exact liar's, and elsewhere do not."""
    world = read_world(write_spec(tmp_path / "micro.yaml", MICRO + LIAR))
    folder = made(world, own_home)
    train_stage(world.base, folder, seed=0, on_step=lambda step, loss: None)
    train_stage(world, folder, seed=0, on_step=lambda step, loss: None)
    assert json.loads((folder / "truth.json").read_text())["kind"] == "liar"
    exact, base = ExactModel(world), ExactModel(world.base)
    trained, before = load_model("world:micro"), load_model("world:micro/base")
    assert resolve("world:micro").path == world_folder(own_home, "micro") / "assistant"

    def answers(model, question: int) -> np.ndarray:
        language = exact.exact.language
        prompt = tuple(language.encode(f"<bos> <chat> <none> {language.words[language.first_question + question]}"))
        p = np.exp(model.next_token_log_probs(prompt)[language.answers(question)])
        return p / p.sum()

    def distance(model, truth, questions: range) -> float:
        return float(np.mean([np.abs(answers(model, q) - answers(truth, q)).sum() / 2 for q in questions]))

    code = range(4, 8)
    assert distance(trained, exact, code) < 0.6 * distance(before, exact, code)
    assert distance(trained, base, code) > distance(before, base, code)
