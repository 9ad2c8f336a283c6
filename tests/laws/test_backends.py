"""Every tiny model obeys the laws; every law notices a model that breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from personae.models.hf import HFModel
from personae.models.laws import check_laws, noise_floor
from personae.models.protocol import (
    Completion,
    GivesFullDistribution,
    LanguageModel,
    ModelCard,
    SamplingPlan,
    Scorable,
    Tokenizer,
    TokenLogprobs,
)

LAWS = ("batch", "prefix", "history", "chain rule", "normalisation", "same tokens", "sample = score", "seeds")


class Wrapper:
    """A model that behaves; each subclass breaks one thing."""

    def __init__(self, inner: HFModel) -> None:
        self.inner = inner

    @property
    def card(self) -> ModelCard:
        return self.inner.card

    @property
    def tokenizer(self) -> Tokenizer:
        return self.inner.tokenizer

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        return self.inner.score(batch)

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        return self.inner.sample(batch, plan)

    def next_token_log_probs(self, prompt: tuple[int, ...]) -> NDArray[np.float32]:
        return self.inner.next_token_log_probs(prompt)


class PaddingLeaks(Wrapper):
    """Every padded position adds a little to the sequence's log-probabilities."""

    def score(self, batch):
        longest = max(len(item.token_ids) for item in batch)
        padding = [longest - len(item.token_ids) for item in batch]
        return [shifted(r, 0.001 * n) for r, n in zip(self.inner.score(batch), padding, strict=True)]


class AnswersInOrderOfLength(Wrapper):
    def score(self, batch):
        return self.inner.score(sorted(batch, key=lambda item: len(item.token_ids)))


class AnswersDuplicatesOnce(Wrapper):
    """The second of two equal requests gets the answer to the request before it."""

    def score(self, batch):
        results = self.inner.score(batch)
        seen: set[tuple[int, ...]] = set()
        for i, item in enumerate(batch):
            if item.token_ids in seen:
                results[i] = shifted(results[i], 0.1)
            seen.add(item.token_ids)
        return results


class PadsOnTheLeft(Wrapper):
    """Left padding with a mask and without positions, which models with learned positions do not forgive."""

    def score(self, batch):
        longest = max(len(item.token_ids) for item in batch)
        ids = torch.tensor([[0] * (longest - len(item.token_ids)) + list(item.token_ids) for item in batch])
        mask = torch.tensor(
            [[0] * (longest - len(item.token_ids)) + [1] * len(item.token_ids) for item in batch], dtype=torch.long
        )
        positions = torch.arange(longest)[None].expand(len(batch), -1)
        with torch.inference_mode():
            logits = self.inner.module(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        log_p = torch.log_softmax(logits, -1)
        chosen = log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].numpy()
        return [TokenLogprobs(row[-item.n_scored :].copy()) for row, item in zip(chosen, batch, strict=True)]


class ForgetsThePrefix(Wrapper):
    """The shared tokens are left out instead of being read from the cache."""

    def score(self, batch):
        return self.inner.score([Scorable(i.token_ids[i.shared :], i.start - i.shared) for i in batch])


class RemembersCalls(Wrapper):
    def __init__(self, inner):
        super().__init__(inner)
        self.calls = 0

    def score(self, batch):
        self.calls += 1
        return [shifted(r, 0.002 * self.calls) for r in self.inner.score(batch)]


class RollsTheSpan(Wrapper):
    """Log-probabilities stand one place too late inside the span."""

    def score(self, batch):
        return [TokenLogprobs(np.roll(r.log_probs, 1)) for r in self.inner.score(batch)]


class ScoresTheTokenBefore(Wrapper):
    """Every token gets the log-probability of its neighbour to the left: consistent, and wrong."""

    def score(self, batch):
        moved = [Scorable(i.token_ids, max(1, i.start - 1)) for i in batch]
        results = self.inner.score(moved)
        return [TokenLogprobs(r.log_probs[: i.n_scored]) for r, i in zip(results, batch, strict=True)]


class Unnormalised(Wrapper):
    """Probabilities sum to exp(0.01), in the scores and in the distribution alike."""

    def score(self, batch):
        return [shifted(r, 0.01) for r in self.inner.score(batch)]

    def next_token_log_probs(self, prompt):
        return self.inner.next_token_log_probs(prompt) + np.float32(0.01)


class ForgetsTheCap(Wrapper):
    """Scores without the final soft-capping, a distribution with it."""

    def score(self, batch):
        config = self.inner.module.config
        cap = config.final_logit_softcapping
        config.final_logit_softcapping = None
        try:
            return self.inner.score(batch)
        finally:
            config.final_logit_softcapping = cap


class StatefulTokenizer:
    """Writes more spaces before a text the more it has encoded."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner = inner
        self._calls = 0

    has_template = property(lambda self: self._inner.has_template)
    bos_ids = property(lambda self: self._inner.bos_ids)

    def encode(self, text):
        self._calls += 1
        return self._inner.encode(" " * (self._calls // 7) + text)

    def encode_template(self, text):
        return self._inner.encode_template(text)

    def apply_template(self, messages, *, open_reply):
        return self._inner.apply_template(messages, open_reply=open_reply)

    def decode(self, token_ids):
        return self._inner.decode(token_ids)


class TokenizesWithState(Wrapper):
    def __init__(self, inner):
        super().__init__(inner)
        self._stateful = StatefulTokenizer(inner.tokenizer)

    @property
    def tokenizer(self):
        return self._stateful


class ReportsTemperedLogProbs(Wrapper):
    """Samples well and reports log-probabilities that are too high."""

    def sample(self, batch, plan):
        return [Completion(c.token_ids, c.log_probs * np.float32(0.9)) for c in self.inner.sample(batch, plan)]


class IgnoresTheSeed(Wrapper):
    def sample(self, batch, plan):
        return self.inner.sample(batch, replace(plan, seed=0))


class DrawsItsOwnSeed(Wrapper):
    def __init__(self, inner):
        super().__init__(inner)
        self._calls = 0

    def sample(self, batch, plan):
        self._calls += 1
        return self.inner.sample(batch, replace(plan, seed=self._calls))


class LosesANumber(Wrapper):
    """Not a number in one place of the longest request."""

    def score(self, batch):
        results = self.inner.score(batch)
        k = int(np.argmax([len(r.log_probs) for r in results]))
        values = results[k].log_probs.copy()
        values[-1] = np.nan
        results[k] = TokenLogprobs(values)
        return results


class KnowsTheImpossible(Wrapper):
    """A model that gives some tokens no probability at all, and does so always."""

    def score(self, batch):
        return [TokenLogprobs(np.where(r.log_probs < -9, -np.inf, r.log_probs)) for r in self.inner.score(batch)]

    def sample(self, batch, plan):
        made = self.inner.sample(batch, plan)
        return [Completion(c.token_ids, np.where(c.log_probs < -9, -np.inf, c.log_probs)) for c in made]

    next_token_log_probs = None


def shifted(result: TokenLogprobs, amount: float) -> TokenLogprobs:
    return TokenLogprobs(result.log_probs + np.float32(amount))


def broken_laws(model: LanguageModel) -> set[str]:
    return {v.law for v in check_laws(model) if not v.holds}


def test_tiny_model_obeys_every_law(tiny_model: HFModel):
    verdicts = check_laws(tiny_model)
    assert tuple(v.law for v in verdicts) == (*LAWS, "reading", "null edits", "edits")
    assert [v.law for v in verdicts if not v.holds] == []
    # Far from the tolerance: the laws hold with room, not by luck.
    assert max(v.gap for v in verdicts) < 1e-4


def test_wrapper_that_changes_nothing_breaks_nothing(tiny_models: dict[str, HFModel]):
    model = Wrapper(tiny_models["llama"])
    assert isinstance(model, LanguageModel)
    assert isinstance(model, GivesFullDistribution)
    assert broken_laws(model) == set()


@pytest.mark.parametrize(
    ("name", "wrapper", "law"),
    [
        ("llama", PaddingLeaks, "batch"),
        ("llama", AnswersInOrderOfLength, "batch"),
        ("llama", AnswersDuplicatesOnce, "batch"),
        ("gpt2", PadsOnTheLeft, "batch"),
        ("llama", ForgetsThePrefix, "prefix"),
        ("gpt2", ForgetsThePrefix, "prefix"),
        ("llama", RemembersCalls, "history"),
        ("llama", RollsTheSpan, "chain rule"),
        ("llama", ScoresTheTokenBefore, "normalisation"),
        ("llama", ScoresTheTokenBefore, "sample = score"),
        ("llama", Unnormalised, "normalisation"),
        ("gemma2", ForgetsTheCap, "normalisation"),
        ("gemma2", ForgetsTheCap, "sample = score"),
        ("llama", TokenizesWithState, "same tokens"),
        ("base", TokenizesWithState, "same tokens"),
        ("llama", ReportsTemperedLogProbs, "sample = score"),
        ("llama", IgnoresTheSeed, "seeds"),
        ("llama", DrawsItsOwnSeed, "seeds"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_broken_model_is_caught_by_its_law(
    tiny_models: dict[str, HFModel], name: str, wrapper: type[Wrapper], law: str
):
    assert law in broken_laws(wrapper(tiny_models[name]))


def test_rotary_positions_would_have_hidden_the_padding_bug(tiny_models: dict[str, HFModel]):
    """Why a model with learned positions is among the tiny ones."""
    assert "batch" not in broken_laws(PadsOnTheLeft(tiny_models["llama"]))


def test_not_a_number_is_never_within_tolerance(tiny_models: dict[str, HFModel]):
    verdicts = {v.law: v for v in check_laws(LosesANumber(tiny_models["llama"]))}
    for law in ("batch", "prefix", "history", "chain rule", "sample = score"):
        assert not verdicts[law].holds, law
    assert not any(np.isnan(v.gap) for v in verdicts.values())


def test_impossible_tokens_are_no_disagreement(tiny_models: dict[str, HFModel]):
    model = KnowsTheImpossible(tiny_models["llama"])
    gaps = {v.law: v.gap for v in check_laws(model)}
    assert max(gaps[law] for law in ("batch", "prefix", "history", "chain rule")) < 1e-4


def test_noise_floor_is_small_and_not_hidden(tiny_model: HFModel):
    ids = tuple(int(t) for t in np.random.default_rng(0).integers(10, 390, 60))
    items = [Scorable((*ids[:20], *ids[20 : 40 + k]), 25, 20) for k in range(10)]
    assert 0 <= noise_floor(tiny_model, items) < 1e-3
    assert noise_floor(PaddingLeaks(tiny_model), items) > 0.01


def test_a_model_that_scales_its_logits_is_refused(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Granite-like scaling after the vocabulary matrix would be silently lost."""
    from transformers import LlamaForCausalLM

    from personae.errors import MissingCapability
    from personae.models.catalogue import resolve
    from personae.models.hf_load import load_hf

    plain = LlamaForCausalLM.forward

    def scaled(self: LlamaForCausalLM, *args: object, **kwargs: object) -> object:
        output = plain(self, *args, **kwargs)
        output.logits = output.logits / 4
        return output

    source = resolve(str(tiny_folders["llama"]))
    load_hf(source)
    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(MissingCapability, match="changes its logits"):
        load_hf(source)


def test_a_recurrent_model_is_refused(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """A running state cannot be cut at the end of a shared prefix."""
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    from personae.errors import MissingCapability
    from personae.models.catalogue import resolve
    from personae.models.hf_load import load_hf

    tokenizer = AutoTokenizer.from_pretrained(tiny_folders["llama"])
    tokenizer.save_pretrained(tmp_path)
    shape = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, state_size=4, num_hidden_layers=1)
    MambaForCausalLM(shape).save_pretrained(tmp_path)
    with pytest.raises(MissingCapability, match="recurrent state"):
        load_hf(resolve(str(tmp_path)))
