"""Cast x episodes x model -> Evidence: nothing is paid for twice, and a run that stops can go on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from personae.domain.episode import Episode, Turn
from personae.domain.persona import BACKGROUND, PLAIN, Cast, Persona, Trait
from personae.errors import ContextOverflow, NumericsError, StorageError
from personae.instruments import scoring as scoring_module
from personae.instruments.scoring import Scoring, Work, space_of
from personae.models.catalogue import home
from personae.models.hf import HFModel
from personae.models.protocol import Completion, LanguageModel, SamplingPlan, Scorable, TokenLogprobs
from personae.models.rendering import Renderer
from personae.running.store import EvidenceStore
from personae.tables.evidence import Evidence

POS = Persona("kind/pos", ("You are kind.", "Be kind to everyone."))
NEG = Persona("kind/neg", ("You are cruel.", "Be cruel to everyone."))
CAST = Cast("small", (Trait("kind", POS, NEG),), (Persona("pirate", ("You are a pirate.",)),))
LARGER = replace(CAST, roles=(*CAST.roles, Persona("nurse", ("You are a nurse.", "Speak as a nurse does."))))
N_FRAMES = 2 + 2 + 1 + 1 + 1  # poles, pirate, plain, background
WORDS = ("the", "capital", "of", "France", "is", "Paris", "my", "order", "has", "not", "arrived", "hello", "librarian")


def episode(k: int) -> Episode:
    rng = np.random.default_rng(k)
    question, answer = (" ".join(rng.choice(WORDS, n)) for n in rng.integers(1, 14, 2))
    return Episode(f"e{k}", (Turn("user", question + "?"),), answer + ".", line=k + 1)


EPISODES = [episode(k) for k in range(18)]


class Counting:
    """A model that notes what it was asked, and stops after some batches when told to."""

    def __init__(self, inner: HFModel, *, stop_after: int | None = None) -> None:
        self.inner = inner
        self.asked: list[Scorable] = []
        self.n_batches = 0
        self._stop_after = stop_after
        self.card, self.tokenizer = inner.card, inner.tokenizer

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        if self.n_batches == self._stop_after:
            raise KeyboardInterrupt
        self.n_batches += 1
        self.asked += batch
        return self.inner.score(batch)

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        return self.inner.sample(batch, plan)


class Bench:
    """A model over a store in `root`, and what each request was said to cost."""

    def __init__(self, model: LanguageModel, root: Path, *, truncate: bool = False, length: int | None = None) -> None:
        self.model = model
        self.store = EvidenceStore(root, space_of(model.card))
        self.renderer = Renderer(model.tokenizer, context_length=length or model.card.context_length, truncate=truncate)
        self.scoring = Scoring(model, self.renderer, self.store)
        self.works: list[Work] = []
        self.advanced = 0

    def __call__(self, cast: Cast = CAST, episodes: Sequence[Episode] = EPISODES, shipped=None) -> Evidence:
        self.advanced = 0
        return self.scoring.evidence(cast, episodes, started=self._started, shipped=shipped)

    def _started(self, work: Work) -> Callable[[int], None]:
        self.works.append(work)

        def advance(n: int) -> None:
            self.advanced += n

        return advance


@pytest.fixture
def model(tiny_models: dict[str, HFModel]) -> Counting:
    return Counting(tiny_models["llama"])


@pytest.fixture(autouse=True)
def no_noise_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise floor asks the model too; here only what is scored counts."""
    monkeypatch.setattr(scoring_module, "_NOISE_EPISODES", 0)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches a frame, so that a run can stop in the middle of one."""
    monkeypatch.setattr(scoring_module, "_BATCH_EPISODES", 4)


def pairs_in(root: Path) -> list[tuple[bytes, bytes]]:
    """Frame and episode of every row in the store."""
    tables = [pq.read_table(p) for p in root.glob("*/seg-*.parquet")]
    return [pair for t in tables for pair in zip(t["frame"].to_pylist(), t["episode"].to_pylist(), strict=True)]


def same_bits(a: Evidence, b: Evidence) -> bool:
    return np.array_equal(a.frame_log_likelihood, b.frame_log_likelihood) and np.array_equal(a.n_tokens, b.n_tokens)


def test_every_pair_is_the_models_own_score(model: Counting, tmp_path: Path):
    bench = Bench(model, tmp_path)
    episodes = [
        replace(e, weight=w, group=g) for e, w, g in zip(EPISODES, np.linspace(-1, 2, 18), "aabbccdde" * 2, strict=True)
    ]
    evidence = bench(episodes=episodes)
    assert evidence.frame_persona == ("kind/pos", "kind/pos", "kind/neg", "kind/neg", "pirate", PLAIN, BACKGROUND)
    assert evidence.frame_log_likelihood.shape == (N_FRAMES, len(EPISODES))
    frames = scoring_module.cast_frames(CAST, bench.renderer)
    for f, frame in enumerate(frames):
        for i, e in enumerate(episodes):
            (alone,) = model.inner.score([bench.renderer.render(frame, e)])
            assert evidence.frame_log_likelihood[f, i] == pytest.approx(alone.log_likelihood, abs=1e-3)
            assert evidence.n_tokens[i] == len(alone.log_probs)
    assert evidence.episodes == tuple(e.id for e in episodes)
    assert evidence.line.tolist() == [e.line for e in episodes]
    assert evidence.weight.tolist() == [e.weight for e in episodes]
    assert evidence.group == tuple(e.group for e in episodes)
    assert len({row.tobytes() for row in evidence.frame_log_likelihood}) == N_FRAMES
    assert bench.works == [Work(N_FRAMES * 18, bench.advanced)]


def test_token_log_probs_sum_to_the_rows(model: Counting, tmp_path: Path):
    bench = Bench(model, tmp_path)
    evidence = bench()
    frames = scoring_module.cast_frames(CAST, bench.renderer)
    tokens = bench.scoring.token_log_probs(frames, EPISODES[3])
    assert tokens.shape == (N_FRAMES, evidence.n_tokens[3])
    np.testing.assert_allclose(tokens.sum(axis=1), evidence.frame_log_likelihood[:, 3], rtol=0, atol=1e-3)


def test_noise_floor_is_measured_once_and_recorded(model: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring_module, "_NOISE_EPISODES", 3)
    bench = Bench(model, tmp_path)
    noise = bench().provenance["noise_floor_nats"]
    assert isinstance(noise, float)
    assert 0 <= noise < 1e-3
    n_asked = len(model.asked)
    assert bench().provenance["noise_floor_nats"] == noise
    assert len(model.asked) == n_asked


def test_second_run_scores_nothing(model: Counting, tmp_path: Path):
    first = Bench(model, tmp_path)()
    n_asked = len(model.asked)
    again = Bench(model, tmp_path)
    second = again()
    assert [w.n_pairs for w in again.works] == [0]
    assert again.works[0].n_tokens == again.advanced == 0
    assert len(model.asked) == n_asked == N_FRAMES * len(EPISODES)
    assert same_bits(first, second)


def test_larger_cast_pays_for_its_new_frames_only(model: Counting, tmp_path: Path):
    small = Bench(model, tmp_path)()
    bench = Bench(model, tmp_path)
    large = bench(LARGER)
    assert bench.works[-1].n_pairs == 2 * len(EPISODES)
    assert len(model.asked) == (N_FRAMES + 2) * len(EPISODES)
    old = [f for f, p in enumerate(large.frame_persona) if p != "nurse"]
    assert np.array_equal(large.frame_log_likelihood[old], small.frame_log_likelihood)


def test_larger_file_pays_for_its_new_rows_only(model: Counting, tmp_path: Path):
    small = Bench(model, tmp_path)(episodes=EPISODES[:12])
    bench = Bench(model, tmp_path)
    shuffled = [EPISODES[k] for k in np.random.default_rng(0).permutation(len(EPISODES))]
    large = bench(episodes=shuffled)
    assert bench.works[-1].n_pairs == N_FRAMES * 6
    at = [large.episodes.index(name) for name in small.episodes]
    assert np.array_equal(large.frame_log_likelihood[:, at], small.frame_log_likelihood)
    smaller = Bench(model, tmp_path)
    smaller(Cast("one", (), CAST.roles), EPISODES[3:5])
    assert smaller.works[-1].n_pairs == 0


def test_equal_contents_are_scored_once(model: Counting, tmp_path: Path):
    copies = [replace(EPISODES[k % 3], id=f"copy{k}", weight=float(k), line=k + 1, group="g") for k in range(9)]
    bench = Bench(model, tmp_path)
    evidence = bench(episodes=copies)
    assert bench.works[-1].n_pairs == N_FRAMES * 3 == len(model.asked)
    assert evidence.episodes == tuple(f"copy{k}" for k in range(9))
    for k in range(9):
        assert np.array_equal(evidence.frame_log_likelihood[:, k], evidence.frame_log_likelihood[:, k % 3])
    assert evidence.weight.tolist() == list(range(9))


def test_equal_instructions_share_their_rows(model: Counting, tmp_path: Path):
    twins = (
        Persona("a", ("You are kind.", "You are a pirate.")),
        Persona("b", ("You are a pirate.",)),
        Persona("c", ("You are kind.", "You are kind.")),
    )
    bench = Bench(model, tmp_path)
    evidence = bench(Cast("twins", (), twins))
    assert evidence.frame_persona == ("a", "a", "b", "c", "c", PLAIN, BACKGROUND)
    table = evidence.frame_log_likelihood
    assert np.array_equal(table[1], table[2])
    assert np.array_equal(table[0], table[3])
    assert np.array_equal(table[3], table[4])
    assert bench.works[-1].n_pairs == 4 * len(EPISODES) == len(model.asked)
    again = Bench(model, tmp_path)
    assert same_bits(evidence, again(Cast("twins", (), twins)))
    assert again.works[-1].n_pairs == 0


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("stop_after", [0, 1, 7, 17, 34])
def test_an_interrupted_run_ends_with_the_same_bits(tiny_models, tmp_path: Path, name: str, stop_after: int):
    whole = Bench(tiny_models[name], tmp_path / "whole")()
    stopped = Counting(tiny_models[name], stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        Bench(stopped, tmp_path / "stopped")()
    resumed = Counting(tiny_models[name])
    bench = Bench(resumed, tmp_path / "stopped")
    assert same_bits(bench(), whole)
    assert bench.works[-1].n_pairs == len(resumed.asked) == N_FRAMES * len(EPISODES) - len(stopped.asked)
    assert bench.advanced == bench.works[-1].n_tokens
    assert not list(bench.store.folder.glob("plan-*"))
    last = Bench(resumed, tmp_path / "stopped")
    assert same_bits(last(), whole)
    assert last.works[-1].n_pairs == 0


@pytest.mark.usefixtures("small_batches")
def test_a_run_stopped_again_and_again_ends_with_the_same_bits(tiny_models, tmp_path: Path):
    whole = Bench(tiny_models["gpt2"], tmp_path / "whole")()
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            Bench(Counting(tiny_models["gpt2"], stop_after=6), tmp_path / "stopped")()
    evidence = Bench(Counting(tiny_models["gpt2"], stop_after=6), tmp_path / "stopped")()
    assert same_bits(evidence, whole)


@pytest.mark.usefixtures("small_batches")
def test_a_resumed_run_can_do_with_other_runs_in_between(tiny_models, tmp_path: Path):
    """Others may have scored a part of what the plan holds; a piece may have been lost."""
    whole = Bench(tiny_models["llama"], tmp_path / "whole")()
    Bench(tiny_models["llama"], tmp_path / "stopped")(Cast("one", (), CAST.roles), EPISODES[:5])
    with pytest.raises(KeyboardInterrupt):
        Bench(Counting(tiny_models["llama"], stop_after=9), tmp_path / "stopped")()
    between = Bench(tiny_models["llama"], tmp_path / "stopped")
    between(replace(CAST, roles=()), EPISODES[7:12])
    for piece in list(between.store.folder.glob("seg-*.parquet"))[:2]:
        piece.write_bytes(piece.read_bytes()[:-1])
    evidence = Bench(tiny_models["llama"], tmp_path / "stopped")()
    np.testing.assert_allclose(evidence.frame_log_likelihood, whole.frame_log_likelihood, rtol=0, atol=1e-3)
    again = Bench(tiny_models["llama"], tmp_path / "stopped")
    assert same_bits(again(), evidence)
    assert again.works[-1].n_pairs == 0


@pytest.mark.usefixtures("small_batches")
def test_a_resumed_run_keeps_its_batches(tiny_models, tmp_path: Path):
    """Rows that another run scored in between would shift the batches of the others, and so their last bits."""
    whole = Bench(tiny_models["llama"], tmp_path / "whole")()
    with pytest.raises(KeyboardInterrupt):
        Bench(Counting(tiny_models["llama"], stop_after=2), tmp_path / "stopped")()
    Bench(tiny_models["llama"], tmp_path / "stopped")(replace(CAST, roles=()), EPISODES[7:12:2])
    evidence = Bench(tiny_models["llama"], tmp_path / "stopped")()
    theirs = np.zeros((N_FRAMES, len(EPISODES)), bool)
    theirs[np.ix_([0, 1, 2, 3, 5, 6], [7, 9, 11])] = True
    ours = ~theirs
    assert np.array_equal(evidence.frame_log_likelihood[ours], whole.frame_log_likelihood[ours])
    # What was known is not stored a second time with other bits.
    stored = pairs_in(tmp_path / "stopped")
    assert len(stored) == len(set(stored)) == N_FRAMES * len(EPISODES)


@pytest.mark.usefixtures("small_batches")
def test_rows_whose_piece_is_lost_are_scored_again(model: Counting, tmp_path: Path):
    first = Bench(model, tmp_path)()
    bench = Bench(model, tmp_path)
    (piece,) = bench.store.folder.glob("seg-*.parquet")
    piece.write_bytes(piece.read_bytes()[:-7])
    assert same_bits(bench(), first)
    assert bench.works[-1].n_pairs == N_FRAMES * len(EPISODES)
    assert len(bench.store.set_aside) == 1


@pytest.mark.usefixtures("small_batches")
def test_what_was_lost_since_the_plan_was_made_is_scored_too(model: Counting, tmp_path: Path):
    """The plan of the larger file leaves out the rows of the smaller one, and then these are lost."""
    small = Bench(model, tmp_path)
    small(episodes=EPISODES[:6])
    (piece,) = small.store.folder.glob("seg-*.parquet")
    with pytest.raises(KeyboardInterrupt):
        Bench(Counting(model.inner, stop_after=3), tmp_path)()
    piece.unlink()
    evidence = Bench(model, tmp_path)()
    assert np.isfinite(evidence.frame_log_likelihood).all()


def test_pieces_are_written_while_the_run_goes_on(model: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring_module, "_SECONDS_BETWEEN_PIECES", -1.0)
    bench = Bench(model, tmp_path)
    bench()
    assert len(list(bench.store.folder.glob("seg-*.parquet"))) == N_FRAMES


def test_a_full_disk_stops_the_run_and_keeps_what_was_stored(model: Counting, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(scoring_module, "_SECONDS_BETWEEN_PIECES", -1.0)
    sync, calls = os.fsync, []

    def full_after_three(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 4:  # the plan and three pieces
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    bench = Bench(model, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_three)
        with pytest.raises(StorageError, match="No space left"):
            bench()
    again = Bench(model, tmp_path)
    again()
    assert again.works[-1].n_pairs == (N_FRAMES - 3) * len(EPISODES)
    assert not [p for p in again.store.folder.iterdir() if p.name.startswith(".")]


class LosesANumber(Counting):
    """Gives a number that is not one, for one episode under one persona."""

    def score(self, batch):
        results = super().score(batch)
        if self.n_batches == 3:
            results[0] = TokenLogprobs(np.full_like(results[0].log_probs, np.nan))
        return results


def test_not_a_number_is_refused_and_not_stored(model: Counting, tmp_path: Path):
    with pytest.raises(NumericsError):
        Bench(LosesANumber(model.inner), tmp_path)()
    bench = Bench(model, tmp_path)
    evidence = bench()
    assert np.isfinite(evidence.frame_log_likelihood).all()
    # The two batches before it were good, and were kept.
    assert bench.works[-1].n_pairs == (N_FRAMES - 2) * len(EPISODES)


class KnowsTheImpossible(Counting):
    def score(self, batch):
        results = super().score(batch)
        return [TokenLogprobs(np.where(r.log_probs < -9, -np.inf, r.log_probs)) for r in results]


def test_the_impossible_is_stored_as_such(model: Counting, tmp_path: Path):
    first = Bench(KnowsTheImpossible(model.inner), tmp_path)()
    assert np.isneginf(first.frame_log_likelihood).any()
    again = Bench(model, tmp_path)
    assert same_bits(again(), first)
    assert again.works[-1].n_pairs == 0


def test_shipped_rows_are_not_scored(model: Counting, tmp_path: Path):
    first = Bench(model, tmp_path / "theirs")
    evidence = first(episodes=EPISODES[:10])
    (piece,) = first.store.folder.glob("seg-*.parquet")
    bench = Bench(model, tmp_path / "mine")
    ours = bench(shipped=pq.read_table(piece))
    assert bench.works[-1].n_pairs == N_FRAMES * 8
    assert np.array_equal(ours.frame_log_likelihood[:, :10], evidence.frame_log_likelihood)


def test_what_does_not_fit_is_refused_before_any_work(model: Counting, tmp_path: Path):
    long = Episode("long", (Turn("user", "Say hello."),), "word " * 400, line=9)
    bench = Bench(model, tmp_path)
    with pytest.raises(ContextOverflow, match="line 9"):
        bench(episodes=[*EPISODES, long])
    assert model.asked == []
    assert bench.works == []


def test_a_longer_cast_cuts_more_and_says_so_in_the_rows(model: Counting, tmp_path: Path):
    """A completion cut for a cast with longer instructions is another content than the one cut before."""
    episodes = [*EPISODES[:3], Episode("long", (Turn("user", "Say hello."),), "Hello! " * 100, line=9)]
    short = Bench(model, tmp_path, truncate=True, length=120)(episodes=episodes)
    wordy = replace(CAST, roles=(*CAST.roles, Persona("wordy", ("You use many words. " * 4,))))
    bench = Bench(model, tmp_path, truncate=True, length=120)
    long = bench(wordy, episodes)
    assert long.n_tokens[3] < short.n_tokens[3]
    assert np.array_equal(long.n_tokens[:3], short.n_tokens[:3])
    assert bench.works[-1].n_pairs == 4 + N_FRAMES  # the new frame on all rows, every frame on the row that was cut
    again = Bench(model, tmp_path, truncate=True, length=120)
    assert same_bits(again(episodes=episodes), short)
    assert again.works[-1].n_pairs == 0


def test_models_do_not_share_rows(tiny_models: dict[str, HFModel], tmp_path: Path):
    spaces = {space_of(m.card) for m in tiny_models.values()}
    assert len(spaces) == len(tiny_models)
    card = tiny_models["llama"].card
    assert space_of(replace(card, device="cuda", kernel="packed", name="other")) == space_of(card)
    assert space_of(replace(card, dtype="bfloat16")) != space_of(card)
    assert space_of(replace(card, tokenizer_digest="x")) != space_of(card)


def test_no_episodes_no_work(model: Counting, tmp_path: Path):
    bench = Bench(model, tmp_path)
    assert bench(episodes=[]).frame_log_likelihood.shape == (N_FRAMES, 0)
    assert bench.works == [Work(0, 0)]


def test_home_is_where_it_was_told(own_home: Path):
    assert home() == own_home
