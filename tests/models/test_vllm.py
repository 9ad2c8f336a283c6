"""vLLM itself, in this process, with the default model; `make servers-test` runs it where vLLM is installed."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from personae.errors import InvalidSettings
from personae.models.catalogue import EMBEDDED, resolve
from personae.models.hf_load import load_hf
from personae.models.laws import check_laws, law_requests
from personae.models.load import load_model
from personae.models.protocol import LanguageModel, SamplingPlan, Scorable
from vllm_params import Params

vllm = pytest.importorskip(
    "vllm", reason="vLLM lives in an environment of its own: make servers-test", exc_type=ImportError
)
pytestmark = pytest.mark.skipif(EMBEDDED["smollm2"].files() is None, reason="the weights of smollm2 are not installed")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model("vllm:smollm2")


def test_every_law_holds(model: LanguageModel) -> None:
    assert {v.law: v.gap for v in check_laws(model) if not v.holds} == {}


def test_its_numbers_are_those_of_transformers(model: LanguageModel) -> None:
    here = load_hf(resolve("smollm2"), device="cpu")
    items = law_requests(here)
    gaps = [np.abs(a.log_probs - b.log_probs).max() for a, b in zip(model.score(items), here.score(items), strict=True)]
    assert max(gaps) < 1e-3
    assert model.card.n_parameters == here.card.n_parameters
    assert model.card.tokenizer_digest == here.card.tokenizer_digest
    assert model.card.digest != here.card.digest


def test_the_card_says_what_was_decided(model: LanguageModel) -> None:
    assert "requests came from it when tried" in model.card.note
    assert model.card.noise_floor is not None
    assert model.card.noise_floor < 0.1
    assert ("+prefix-cache" in model.card.kernel) == model.card.note.startswith("prefix cache read")


def test_the_longest_sequence_that_the_card_names_is_scored(model: LanguageModel) -> None:
    n = model.card.context_length
    ids = tuple(5 + k % 100 for k in range(n))
    (scored,) = model.score([Scorable(ids, n - 2)])
    assert np.isfinite(scored.log_probs).all()


def test_greedy_replies_are_those_of_transformers(model: LanguageModel) -> None:
    here = load_hf(resolve("smollm2"), device="cpu")
    prompts = [i.token_ids[: i.start] for i in law_requests(here)[:3]]
    plan = SamplingPlan(8, 0.0, 0)
    assert [c.token_ids for c in model.sample(prompts, plan)] == [c.token_ids for c in here.sample(prompts, plan)]


def test_settings_that_the_unit_tests_assume_exist() -> None:
    assert {f.name for f in fields(Params)} <= set(vllm.SamplingParams.__struct_fields__)


def test_another_device_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="--device"):
        load_model("vllm:smollm2", device="tpu")
