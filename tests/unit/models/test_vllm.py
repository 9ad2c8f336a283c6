"""vLLM's answers are read as they are meant: an engine with a prefix cache that leaves old numbers where it hits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from personae.errors import BackendError, InvalidSettings, MissingCapability, ModelNotFound
from personae.models import catalogue
from personae.models.catalogue import resolve
from personae.models.hf import HFModel
from personae.models.laws import check_laws, law_requests
from personae.models.load import load_model, load_tokenizer
from personae.models.protocol import SamplingPlan, Scorable, seed_of
from personae.models.vllm import VLLMModel, decide, load_vllm, settled
from vllm_params import Params

_BLOCK = 16


class Engine:
    """A model of ours behind the part of `vllm.LLM` that is used, with its prefix cache and what was wrong with it.

    Args:
        model: Whose numbers they are.
        reports: Whether it says how much of a prompt came from the cache.
        bias: Added to numbers behind a cached part: what must not be.
        stale: The number left at places that were not computed; NaN for none of the token's own.
    """

    def __init__(self, model: HFModel, *, reports: bool = True, bias: float = 0.0, stale: float = np.nan) -> None:
        self._model, self._reports, self._bias, self._stale = model, reports, bias, stale
        self._seen: set[tuple[int, ...]] = set()
        self.params: list[Params] = []

    def reset_prefix_cache(self) -> bool:
        self._seen.clear()
        return True

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool) -> Sequence[Any]:
        assert not use_tqdm
        return [self._one(tuple(p["prompt_token_ids"]), s) for p, s in zip(prompts, sampling_params, strict=True)]

    def _one(self, ids: tuple[int, ...], params: Params) -> Any:
        self.params.append(params)
        assert not params.detokenize
        ends = range(_BLOCK, len(ids), _BLOCK)
        hit = 0 if params.skip_reading_prefix_cache else max((n for n in ends if ids[:n] in self._seen), default=0)
        self._seen.update(ids[:n] for n in ends)
        output = SimpleNamespace(prompt_token_ids=list(ids), prompt_logprobs=None, outputs=[])
        output.num_cached_tokens = hit if self._reports else None
        if params.prompt_logprobs is not None:
            output.prompt_logprobs = [None, *(self._row(ids, t, hit) for t in range(1, len(ids)))]
            right = self._model.score([Scorable(ids, 1)])[0].log_probs
            for t in range(hit + 1, len(ids)):
                output.prompt_logprobs[t] = {
                    ids[t]: SimpleNamespace(logprob=float(right[t - 1]) + self._bias * (hit > 0))
                }
        elif params.logprobs == -1:
            row = self._model.next_token_log_probs(ids)
            output.outputs = [SimpleNamespace(token_ids=[0], logprobs=[dict(enumerate(map(_entry, row)))])]
        else:
            output.outputs = [self._said(ids, params)]
        return output

    def _row(self, ids: tuple[int, ...], t: int, hit: int) -> dict[int, Any]:
        """What memory holds: a number of another token, or an old one of this."""
        return {ids[t] + 1: _entry(-1.0)} if np.isnan(self._stale) else {ids[t]: _entry(self._stale)}

    def _said(self, ids: tuple[int, ...], params: Params) -> Any:
        assert params.ignore_eos
        assert params.stop_token_ids == sorted(self._model.tokenizer.stop_ids)
        (made,) = self._model.sample([ids], SamplingPlan(params.max_tokens, params.temperature, params.seed or 0))
        rows = [{i: _entry(v)} for i, v in zip(made.token_ids, made.log_probs, strict=True)]
        return SimpleNamespace(token_ids=list(made.token_ids), logprobs=rows)


def _entry(value: float) -> Any:
    return SimpleNamespace(logprob=float(value))


@pytest.fixture(scope="module")
def tiny(tiny_models: dict[str, HFModel]) -> HFModel:
    return tiny_models["llama"]


@pytest.fixture
def start(tiny: HFModel) -> Callable[..., tuple[VLLMModel, Engine]]:
    def make(engine: Engine | None = None, **faults: Any) -> tuple[VLLMModel, Engine]:
        found = engine or Engine(tiny, **faults)
        return VLLMModel(found, Params, tiny.tokenizer, replace(tiny.card, kernel="vllm-9")), found

    return make


def test_a_sound_cache_is_read_and_the_laws_hold(start, tiny: HFModel) -> None:
    model = settled(*start(), Params)
    assert model.card.kernel == "vllm-9+prefix-cache"
    assert model.card.note.startswith("prefix cache read: ")
    assert "0 of" not in model.card.note
    assert model.card.noise_floor == pytest.approx(0, abs=1e-4)
    verdicts = check_laws(model)
    assert [v.law for v in verdicts if not v.holds] == []
    assert "normalisation" in [v.law for v in verdicts]
    items = law_requests(tiny)
    for ours, theirs in zip(model.score(items), tiny.score(items), strict=True):
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-4)


def test_what_was_not_computed_is_asked_for_again(start, tiny: HFModel) -> None:
    model, engine = start(stale=-1.0)
    ids = tuple(i % 300 for i in range(7, 67))
    item = Scorable(ids, 20, 18)
    right = tiny.score([item])[0].log_probs
    first, second = model.ask([item, item], read=True)
    assert [first[1], second[1]] == [0, 0]
    assert [p.skip_reading_prefix_cache for p in engine.params] == [
        False,
        False,
        True,
    ]  # 48 cached tokens reach beyond 20
    for logs, _ in (first, second):
        np.testing.assert_allclose(logs, right, atol=1e-4)
    behind = Scorable(ids, 50, 18)
    ((logs, n_cached),) = model.ask([behind], read=True)
    assert n_cached == 48
    np.testing.assert_allclose(logs, right[30:], atol=1e-4)
    ((logs, n_cached),) = model.ask([Scorable(ids, 48, 18)], read=True)  # the first scored token is the last cached one
    assert n_cached == 0
    np.testing.assert_allclose(logs, right[28:], atol=1e-4)


@pytest.mark.parametrize("faults", [{"bias": 0.01}, {"reports": False}, {"bias": 0.01, "stale": -1.0}])
def test_an_unsound_cache_is_left_alone(start, faults: dict[str, Any]) -> None:
    model = settled(*start(**faults), Params)
    assert model.card.kernel == "vllm-9"
    assert "not read" in model.card.note
    assert [v.law for v in check_laws(model) if not v.holds] == []


def test_an_engine_that_hides_its_hits_is_found_out(start, tiny: HFModel) -> None:
    class Silent(Engine):
        def _one(self, ids: tuple[int, ...], params: Params) -> Any:
            output = super()._one(ids, params)
            output.num_cached_tokens = 0
            return output

    for stale in (np.nan, -1.0):
        model, engine = start(Silent(tiny, stale=stale))
        found = decide(model, engine)
        assert not found.reads
        assert found.gap > 0.01


def test_places_are_seeded_and_numbers_are_of_temperature_one(start, tiny: HFModel) -> None:
    model, engine = start()
    prompts = [(5, 6, 7), (5, 6, 7)]
    plan = SamplingPlan(6, 0.5, 3)
    made = model.sample(prompts, plan)
    assert [p.seed for p in engine.params] == [seed_of(plan, 0), seed_of(plan, 1)]
    assert {(p.temperature, p.max_tokens, p.logprobs) for p in engine.params} == {(0.5, 6, 0)}
    for prompt, c in zip(prompts, made, strict=True):
        scored = tiny.score([Scorable((*prompt, *c.token_ids), len(prompt))])[0].log_probs
        np.testing.assert_allclose(c.log_probs, scored, atol=1e-4)


def test_missing_numbers_and_failures_are_errors(start, tiny: HFModel) -> None:
    class Broken(Engine):
        fault = ""

        def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool) -> Sequence[Any]:
            if self.fault == "dies":
                raise RuntimeError("no memory\nat all")
            outputs = list(super().generate(prompts, sampling_params, use_tqdm=use_tqdm))
            match self.fault:
                case "short":
                    outputs[0].prompt_logprobs = outputs[0].prompt_logprobs[:-1]
                case "none":
                    outputs[0].prompt_logprobs = None
                case "gap":
                    outputs[0].prompt_logprobs[-1] = {}
                case "not a number":
                    outputs[0].prompt_logprobs[-1] = {8: _entry(np.nan)}
                case "other":
                    outputs.reverse()
            return outputs

    model, engine = start(Broken(tiny))
    items = [Scorable((5, 6, 7, 8), 2), Scorable((9, 6, 7, 8), 2)]
    for fault in ("short", "none", "gap", "not a number", "other", "dies"):
        engine.fault = fault  # type: ignore[attr-defined]
        with pytest.raises(BackendError, match=r"no log-probabilities|other prompts|no memory$"):
            model.score(items)


def test_names(monkeypatch: pytest.MonkeyPatch, tiny_folders) -> None:
    folder = str(tiny_folders["llama"])
    _without(monkeypatch, "vllm")
    with pytest.raises(MissingCapability, match="needs the package 'vllm'") as absent:
        resolve(f"vllm:{folder}")
    assert "pip install 'personae[vllm]'" in absent.value.hint
    _with(monkeypatch, "vllm")
    source = resolve(f"vllm:{folder}")
    assert source.kind == "vllm"
    assert source.weights == resolve(folder)
    assert resolve("vllm:owner/name").weights == resolve("owner/name")
    for name in ("vllm:world:tiny/exact", "vllm:http://127.0.0.1/v1", "vllm:vllm:owner/name"):
        with pytest.raises(MissingCapability, match="files of their own"):
            resolve(name)
    for name in ("vllm:", "vllm:nobody"):
        with pytest.raises(ModelNotFound):
            resolve(name)
    assert load_tokenizer(f"vllm:{folder}")[1] == load_tokenizer(folder)[1]
    with pytest.raises(InvalidSettings, match="--dtype"):
        load_vllm(source, dtype="int4")
    with pytest.raises(InvalidSettings, match="--tokenizer"):
        load_model(f"vllm:{folder}", tokenizer=folder)


def test_adapters_and_training_are_not_for_vllm(monkeypatch: pytest.MonkeyPatch, tiny_folders, tmp_path) -> None:
    from personae.domain.episode import Episode, Turn
    from personae.instruments.training import train

    _with(monkeypatch, "vllm")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    with pytest.raises(MissingCapability, match="run by vLLM"):
        resolve(f"vllm:owner/name+{tmp_path / 'a'}")
    row = Episode("a", (Turn("user", "Hi"),), "Hello")
    for name in (f"vllm:{tiny_folders['llama']}", "http://127.0.0.1:9/v1#far"):
        with pytest.raises(MissingCapability, match="cannot be trained"):
            train(name, [row], folder=tmp_path / "run")


def _with(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    found = lambda name, *more: SimpleNamespace(origin=None) if name == package else real(name, *more)  # noqa: E731
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", found)


def _without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        catalogue.importlib.util, "find_spec", lambda name, *more: None if name == package else real(name, *more)
    )
