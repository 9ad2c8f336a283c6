"""Models behind a real server on loopback, well-behaved and not: right numbers or none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast, Persona, Trait
from personae.errors import InvalidSettings, MissingCapability, ServerError
from personae.instruments.scoring import Scoring, space_of
from personae.models.http import HTTPModel, connect
from personae.models.http_chat import HTTPChat
from personae.models.http_client import Patience
from personae.models.laws import check_laws
from personae.models.load import load_model
from personae.models.protocol import LanguageModel, SamplingPlan, Scorable
from personae.models.rendering import Renderer
from personae.running.store import EvidenceStore
from personae.tables.evidence import Evidence
from unruly_server import Manners, Unruly

NAME = "world:tiny/exact"
QUICK = Patience(tries=12, timeout=2.0, connect=1.0, first_wait=0.01, longest_wait=0.05, longest_asked=5.0)
CAST = Cast(
    "tiny",
    (Trait("malice", Persona("malice/pos", ("cruel", "wicked")), Persona("malice/neg", ("kind", "gentle"))),),
    (Persona("expert", ("skilled",)),),
)


@pytest.fixture(scope="module")
def exact() -> LanguageModel:
    return load_model(NAME)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PERSONAE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def reach(server: Unruly, **options) -> HTTPModel:
    return connect(server.url, tokenizer=NAME, patience=QUICK, **options)


def episodes(model: LanguageModel, n: int = 12) -> list[Episode]:
    phrases = model.tokenizer.phrases  # type: ignore[attr-defined]
    pairs = [(q, r.split()[0]) for q, r in zip(phrases.questions, phrases.replies, strict=True)]
    made: list[Episode] = []
    for k in range(n):
        (q1, r1), (q2, r2) = pairs[k % 4], pairs[(k // 4) % 4]
        made.append(Episode(f"e{k}", (Turn("user", q1), Turn("assistant", r1), Turn("user", q2)), r2))
    return made


def evidence(model: LanguageModel, root: Path, n: int = 12) -> Evidence:
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    scoring = Scoring(model, renderer, EvidenceStore(root, space_of(model.card)))
    return scoring.evidence(CAST, episodes(model, n), started=lambda _: lambda amount: None)


@pytest.mark.parametrize(
    ("manners", "way"),
    [
        (Manners("vllm"), "prompt_logprobs"),
        (Manners("echo"), "echo"),
        (Manners("text"), "echo of text"),
        (Manners("echo", shift=1), "echo, shifted by -1 and corrected"),
        (Manners("echo", shift=-1), "echo, shifted by +1 and corrected"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_way_is_found_and_gives_the_models_own_numbers(exact, tmp_path: Path, manners: Manners, way: str) -> None:
    with Unruly(exact, manners) as server:
        model = reach(server)
        assert model.card.kernel == way
        here, there = evidence(exact, tmp_path / "here"), evidence(model, tmp_path / "there")
        np.testing.assert_allclose(there.frame_log_likelihood, here.frame_log_likelihood, atol=1e-5)
        assert [v.law for v in check_laws(model) if not v.holds] == []


def test_echoes_of_the_wrong_place_are_refused_where_no_shift_mends_them(exact) -> None:
    """What llama-cpp-python does without an opening token: the probability that a token is said again."""
    with Unruly(exact, Manners("echo", repeats=True)) as server:
        with pytest.raises(MissingCapability, match="not those of sampling") as caught:
            reach(server)
        assert "--target" in caught.value.hint


def test_numbers_that_are_a_little_off_are_refused_too(exact) -> None:
    with Unruly(exact, Manners("vllm", noise=0.05)) as server, pytest.raises(MissingCapability, match="sampling"):
        reach(server)


def test_a_server_without_numbers_is_told_apart_and_still_speaks(exact) -> None:
    with Unruly(exact, Manners("chat")) as server:
        with pytest.raises(MissingCapability, match="log-probabilities of given text"):
            reach(server)
        chat = HTTPChat(server.url, patience=QUICK)
        question = exact.tokenizer.phrases.questions[0]
        plan = SamplingPlan(max_tokens=1, seed=3)
        one, two = (chat.reply([(Turn("user", question),)] * 5, plan) for _ in range(2))
        assert [r.text for r in one] == [r.text for r in two]
        assert all(r.text for r in one)
        other = chat.reply([(Turn("user", question),)] * 5, SamplingPlan(max_tokens=1, seed=4))
        assert [r.text for r in other] != [r.text for r in one]


@pytest.mark.parametrize("fault", ["stall", "drop", "429", "500", "half", "missing", "wrong order", "garbage"])
def test_each_fault_costs_a_try_and_no_number(exact, tmp_path: Path, fault: str) -> None:
    with Unruly(exact, Manners("vllm", stall=0.0)) as server:
        model = reach(server)
        if fault == "stall":
            model._server._client.timeout = 0.3
            server.manners.stall = 0.6
        right = evidence(exact, tmp_path / "right")
        server.manners.faults += [fault, "", fault, fault]
        made = evidence(model, tmp_path / "made")
        np.testing.assert_allclose(made.frame_log_likelihood, right.frame_log_likelihood, atol=1e-5)
        n_faults = sum(f == fault for _, f in server.log)
        assert n_faults == 3
        # Choices of a single prompt have no order to lose.
        assert model._server.n_retries >= (1 if fault == "wrong order" else 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_faults_lose_double_and_change_nothing(exact, tmp_path: Path, seed: int) -> None:
    with Unruly(exact, Manners("vllm", stall=0.01)) as server:
        model = reach(server)
        server.manners.chance, server.manners.seed = 0.4, seed
        made, right = evidence(model, tmp_path / "made", 48), evidence(exact, tmp_path / "right", 48)
        np.testing.assert_allclose(made.frame_log_likelihood, right.frame_log_likelihood, atol=1e-5)
        assert sum(bool(f) for _, f in server.log) > 0


def test_numbers_that_stay_away_end_the_run_and_what_came_before_is_kept(exact, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("personae.instruments.scoring._BATCH_EPISODES", 4)
    with Unruly(exact, Manners("vllm")) as server:
        model = reach(server, workers=1)
        server.manners.faults += [""] * 6 + ["missing"] * 50
        with pytest.raises(ServerError, match="has no log-probability"):
            evidence(model, tmp_path / "run")
        server.manners.faults.clear()
        before = server.n_completions
        again = evidence(reach(server, workers=1), tmp_path / "run")
        n_frames = len(again.frame_persona)
        np.testing.assert_allclose(
            again.frame_log_likelihood, evidence(exact, tmp_path / "x").frame_log_likelihood, atol=1e-5
        )
        asked = [b for (path, _), b in zip(server.log, server.bodies, strict=True) if path.endswith("completions")]
        rows = sum(len(b["prompt"]) for b in asked[before:] if b.get("prompt_logprobs") == 0 and len(b["prompt"]) > 1)
        assert 0 < rows < 12 * n_frames


def test_a_server_that_dies_and_comes_back_is_waited_for(exact, tmp_path: Path) -> None:
    import threading
    import time

    patient = Patience(tries=30, timeout=2.0, connect=1.0, first_wait=0.05, longest_wait=0.2)
    first = Unruly(exact, Manners("vllm"))
    with first:
        model = connect(first.url, tokenizer=NAME, patience=patient, workers=2)
        port = first._server.server_address[1]
    second: list[Unruly] = []

    def revive() -> None:
        time.sleep(0.6)
        second.append(Unruly(exact, Manners("vllm"), port=port))
        second[0].__enter__()

    thread = threading.Thread(target=revive)
    thread.start()
    made = evidence(model, tmp_path / "made")
    thread.join()
    second[0].__exit__()
    right = evidence(exact, tmp_path / "right")
    np.testing.assert_allclose(made.frame_log_likelihood, right.frame_log_likelihood, atol=1e-5)
    assert model._server.n_retries > 0


def test_another_models_answer_is_never_taken(exact) -> None:
    with Unruly(exact, Manners("vllm")) as server:
        model = reach(server)
        server.manners.answers_as = "somebody-else"
        with pytest.raises(ServerError, match="'somebody-else' answered"):
            evidence(model, Path(os.environ["PERSONAE_HOME"]) / "another")


def test_names_of_models(exact) -> None:
    with Unruly(exact, Manners("vllm")) as server:
        base = server.url.partition("#")[0]
        assert connect(base, tokenizer=NAME, patience=QUICK).card.name == base  # its only model
        with pytest.raises(InvalidSettings, match="has no model 'other'") as caught:
            connect(f"{base}#other", tokenizer=NAME, patience=QUICK)
        assert "tiny" in caught.value.hint
    with Unruly(exact, Manners("echo", lists_models=False)) as server:
        assert reach(server).card.kernel == "echo"


def test_a_tokenizer_must_be_had_and_fit(exact, tiny_models, tiny_folders: dict[str, Path]) -> None:
    with (
        Unruly(exact, Manners("vllm")) as server,
        pytest.raises(MissingCapability, match="does not say which tokenizer"),
    ):
        connect(server.url, patience=QUICK)
    for style in ("vllm", "echo"):
        with (
            Unruly(tiny_models["llama"], Manners(style)) as server,
            pytest.raises((InvalidSettings, MissingCapability), match="tokenizer does not fit"),
        ):
            connect(server.url, tokenizer=str(tiny_folders["gemma2"]), patience=QUICK)


def test_the_tokenizer_of_the_folder_a_server_was_started_with_is_found(tiny_models, tiny_folders) -> None:
    local = tiny_models["llama"]
    with Unruly(local, Manners("vllm", root=str(tiny_folders["llama"]))) as server:
        model = connect(server.url, patience=QUICK)
        assert model.tokenizer.digest() == local.tokenizer.digest()  # type: ignore[attr-defined]
        assert model.card.context_length == local.card.context_length - 2
        longest = Scorable(tuple(range(5, 5 + model.card.context_length)), 200)
        np.testing.assert_allclose(model.score([longest])[0].log_probs, local.score([longest])[0].log_probs, atol=1e-3)
        text = "My order has not arrived."
        renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
        items = [renderer.render(f, Episode("e", (Turn("user", "Say hello."),), text)) for f in _frames(renderer)]
        for a, b in zip(model.score(items), local.score(items), strict=True):
            np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-3)


def _frames(renderer: Renderer) -> Sequence:
    return renderer.frames(Persona("p", ("You are a patient librarian.", "Your replies are short.")))


def test_the_same_name_with_another_model_behind_it_has_another_space(exact) -> None:
    base = load_model("world:tiny/base/exact")
    digests = []
    for model in (exact, base, exact):
        with Unruly(model, Manners("vllm"), port=0) as server:
            card = reach(server).card
            digests.append(card.digest)
    assert len(set(digests)) == 3  # the address is part of it as well


def test_keys_are_asked_for_and_stand_nowhere(exact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-secret-0123456789abcdef"
    with Unruly(exact, Manners("vllm", key=secret)) as server:
        with pytest.raises(ServerError, match="refused \\(401\\)") as caught:
            reach(server)
        assert "PERSONAE_API_KEY" in caught.value.hint
        monkeypatch.setenv("PERSONAE_API_KEY", secret)
        model = reach(server)
        evidence(model, tmp_path / "made")
        assert secret not in str(model.card)
        assert all(secret.encode() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
