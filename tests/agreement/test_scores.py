"""Scores against an independent loop: one sequence at a time, all logits, float64 softmax."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from scipy.special import logsumexp
from transformers import AutoModelForCausalLM, PreTrainedModel

from personae.domain.episode import Episode, Turn
from personae.domain.persona import BACKGROUND, PLAIN, Persona
from personae.models import hf, hf_load
from personae.models.catalogue import resolve
from personae.models.hf import HFModel
from personae.models.hf_kernel import pack_linears
from personae.models.protocol import Scorable
from personae.models.rendering import Renderer
from personae.numerics.logspace import chain_increments, log_mean_exp, log_normalise, softmax
from tiny_models import CONTEXT_LENGTH, MODEL_NAMES, VOCAB_SIZE

TOLERANCE = 1e-4  # nats a token

has_packed_kernel = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture(scope="module")
def plain_modules(tiny_folders: dict[str, Path]) -> dict[str, PreTrainedModel]:
    """The same weights read by transformers itself, with its simplest attention."""
    return {
        name: AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        for name, folder in tiny_folders.items()
    }


def one_at_a_time(module: PreTrainedModel, item: Scorable) -> NDArray[np.float64]:
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([item.token_ids]), use_cache=False).logits[0]
    log_p = torch.log_softmax(logits.double(), -1)
    return np.array([float(log_p[t - 1, item.token_ids[t]]) for t in range(item.start, len(item.token_ids))])


def assert_agrees(model: HFModel, module: PreTrainedModel, items: list[Scorable]) -> None:
    results = model.score(items)
    assert len(results) == len(items)
    for item, result in zip(items, results, strict=True):
        assert result.log_probs.dtype == np.float32
        assert result.log_probs.shape == (item.n_scored,)
        np.testing.assert_allclose(result.log_probs, one_at_a_time(module, item), rtol=0, atol=TOLERANCE)


def random_ids(n: int, seed: int) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(seed).integers(0, VOCAB_SIZE, n))


def mixed_requests() -> list[Scorable]:
    """Prefixes short, long and absent, all lengths, one-token completions, duplicates, in no order."""
    prefixes = [random_ids(n, seed) for seed, n in enumerate((3, 12, 40, 90, 150, 7))]
    items: list[Scorable] = []
    for k, prefix in enumerate(prefixes):
        for j, rest in enumerate((2, 5, 17, 60, 30)):
            tail = random_ids(rest, 100 + 10 * k + j)
            start = len(prefix) + (1 if j % 2 else rest - 1)
            items.append(Scorable((*prefix, *tail), start, len(prefix)))
    items += [Scorable(i.token_ids, i.start) for i in items[::3]]  # the same without the hint
    items += [Scorable(random_ids(n, n), 1) for n in (2, 3, 90, CONTEXT_LENGTH)]  # everything scored
    items += [Scorable(random_ids(n, n), n - 1) for n in (2, 50, CONTEXT_LENGTH)]  # one token scored
    items += items[::4]
    order = np.random.default_rng(5).permutation(len(items))
    return [items[k] for k in order]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_mixed_requests_agree(name, tiny_models, plain_modules):
    assert_agrees(tiny_models[name], plain_modules[name], mixed_requests())


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_rendered_dialogue_agrees(name, tiny_models, plain_modules):
    model = tiny_models[name]
    renderer = Renderer(model.tokenizer, context_length=CONTEXT_LENGTH, base_styles=("dialogue", "interview"))
    personas = (Persona("a", ("You are blunt.", "You are a pirate\n")), Persona(PLAIN, ()), Persona(BACKGROUND, ()))
    episodes = [
        Episode("1", (Turn("user", "Say hello."),), "Hello!"),
        Episode(
            "2", (Turn("user", "Why is the sky blue?"), Turn("assistant", "Air."), Turn("user", "Oh?")), "Yes 👩‍👩‍👧"
        ),
        Episode("3", (), "The capital of France is Paris.", is_document=True),
        Episode("4", (Turn("user", "Spell <|im_end|> and <eos>"),), "<|im_end|><eos>"),
    ]
    items = [renderer.render(f, e) for p in personas for f in renderer.frames(p) for e in episodes]
    assert_agrees(model, plain_modules[name], items)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_small_budgets_agree(name, tiny_models, plain_modules, monkeypatch):
    """Many chunks, and logits in pieces that cut through sequences."""
    monkeypatch.setitem(hf._BATCH_TOKENS, "cpu", 64)
    monkeypatch.setitem(hf._LOGIT_BYTES, "cpu", 4 * VOCAB_SIZE * 17)
    whole = tiny_models[name]
    model = HFModel(whole.module, whole.tokenizer, whole.card)
    assert_agrees(model, plain_modules[name], mixed_requests())


def test_prefixes_beyond_those_kept_agree(tiny_models, plain_modules):
    """A prefix that was dropped from the cache and one that was grown by other requests come back right."""
    model = tiny_models["gemma2"]
    prefixes = [random_ids(20 + k, k) for k in range(2 * hf._KEPT_PREFIXES)]
    for k in (*range(len(prefixes)), 0, 1, len(prefixes) - 1):
        items = [Scorable((*prefixes[k], *random_ids(9, k)), len(prefixes[k]) + 2, len(prefixes[k]))]
        assert_agrees(model, plain_modules["gemma2"], items)


def test_tokens_differ_by_several_nats(tiny_models):
    """Otherwise a score of the wrong token would pass for the right one."""
    for model in tiny_models.values():
        assert model.next_token_log_probs(random_ids(12, 0)).std() > 1.0


def test_next_token_distribution_agrees(tiny_model, tiny_folders, plain_modules):
    module = plain_modules[Path(tiny_model.card.name).name]
    ids = random_ids(30, 1)
    with torch.no_grad():
        expected = torch.log_softmax(module(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1).numpy()
    np.testing.assert_allclose(tiny_model.next_token_log_probs(ids), expected, rtol=0, atol=TOLERANCE)


def test_nothing_asked_nothing_answered(tiny_models):
    assert tiny_models["llama"].score([]) == []


@pytest.mark.skipif(not has_packed_kernel, reason="this build of torch has no packed kernel")
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_packed_kernel_agrees(name, tiny_folders, tiny_models, plain_modules, own_home, monkeypatch):
    monkeypatch.setattr(hf_load, "packed_kernel_helps", lambda linear: False)
    model = hf_load.load_hf(resolve(str(tiny_folders[name])), device="cpu")
    assert model.card.kernel == "plain"
    n_linear = sum(type(m) is torch.nn.Linear for m in model.module.modules())
    assert pack_linears(model.module) == n_linear > 0
    assert not any(type(m) is torch.nn.Linear for m in model.module.modules())
    assert_agrees(model, plain_modules[name], mixed_requests())


@pytest.mark.skipif(not has_packed_kernel, reason="this build of torch has no packed kernel")
def test_choice_of_kernel_is_remembered(tiny_folders, plain_modules, own_home, monkeypatch):
    verdicts = iter([True])
    monkeypatch.setattr(hf_load, "packed_kernel_helps", lambda linear: next(verdicts))
    source = resolve(str(tiny_folders["llama"]))
    first, again = (hf_load.load_hf(source, device="cpu") for _ in range(2))
    assert first.card.kernel == again.card.kernel == "packed"
    assert first.card.digest == again.card.digest
    items = mixed_requests()
    assert_agrees(first, plain_modules["llama"], items)
    for a, b in zip(first.score(items), again.score(items), strict=True):
        assert np.array_equal(a.log_probs, b.log_probs)


rows = npst.array_shapes(min_dims=2, max_dims=2, max_side=12)
log_probs = npst.arrays(np.float64, rows, elements=st.floats(-60, 0))


@given(log_probs)
def test_chain_increments_sum_to_the_mixture(token_log_probs):
    increments = chain_increments(token_log_probs)
    assert increments.shape == (token_log_probs.shape[1],)
    assert increments.sum() == pytest.approx(float(log_mean_exp(token_log_probs.sum(axis=1))), abs=1e-9)


@given(log_probs)
def test_log_mean_exp_agrees_with_scipy(values):
    n = values.shape[0]
    np.testing.assert_allclose(log_mean_exp(values, axis=0), logsumexp(values, axis=0, b=1 / n), rtol=0, atol=1e-9)
    direct = np.log(np.exp(values - values.max()).mean(axis=1)) + values.max()
    np.testing.assert_allclose(log_mean_exp(values, axis=1), direct, rtol=0, atol=1e-9)


def test_log_mean_exp_far_from_zero_and_at_impossible():
    assert log_mean_exp([-5000.0, -5000.0]) == -5000.0
    assert log_mean_exp([-5000.0, -np.inf]) == pytest.approx(-5000.0 - np.log(2))
    assert log_mean_exp([-np.inf, -np.inf]) == -np.inf


def test_chain_increments_past_an_impossible_token():
    increments = chain_increments(np.array([[-1.0, -np.inf, -1.0], [-1.0, -2.0, -1.0]]))
    assert increments.sum() == pytest.approx(-4.0 - np.log(2))


def test_normalised_probabilities_sum_to_one():
    values = np.random.default_rng(0).normal(size=(5, 7)) * 400
    assert np.exp(log_normalise(values)).sum(axis=-1) == pytest.approx(np.ones(5))
    assert softmax(values, axis=0).sum(axis=0) == pytest.approx(np.ones(7))
