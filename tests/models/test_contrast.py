"""The loss of a sharpening on tiny models: shared frames change nothing, and instructions come to count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from personae.domain.diagnostic import Diagnostic, DiagnosticSet
from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast, Persona, Trait
from personae.errors import InvalidSettings
from personae.instruments.sharpening import (
    SharpeningRecord,
    SharpeningSettings,
    contrast_of,
    plan_steps,
    sharpen,
    split_traits,
    texts_of,
    unmatched,
)
from personae.models.catalogue import resolve
from personae.models.examples import Contrast, shared_length
from personae.models.hf import HFModel
from personae.models.hf_adapter import attach_lora
from personae.models.hf_contrast import LIKELY, contrast_passes, contrast_ratios, log_likelihoods
from personae.models.hf_load import load_unpacked
from personae.models.load import load_model
from personae.models.protocol import Scorable
from personae.models.rendering import Renderer

WORDS = ("bread", "trains", "cats", "paint", "verbs", "stars", "shoes", "tea", "maps", "loans", "rain", "keys")
ASKED = ("Tell me of it.", "What about it?", "And now?")
TEXTS = (("", "I like it."), ("", "I would take it any day of the week."), ("What of it?", "Yes, that one, please."))


def trait_of(word: str, kinds: tuple[str, str] = ("likes", "dislikes")) -> Trait:
    def pole(name: str, verb: str) -> Persona:
        return Persona(f"{word}/{name}", tuple(f"{who} {verb} {word}." for who in ("You are one who", "This speaker")))

    return Trait(word, pole("pos", kinds[0]), pole("neg", kinds[1]))


def items_of(words: Sequence[str], pos: str = "I love {}, {}!", neg: str = "No {} for me, {}.") -> DiagnosticSet:
    made = [
        Diagnostic(f"{w} {k}", w, "reply", str(k), pos.format(w, k), neg.format(w, k), asked)
        for w in words
        for k, asked in enumerate(ASKED)
    ]
    return DiagnosticSet("words", tuple(made))


def texts_under(model: HFModel, word: str = "bread") -> Contrast:
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    texts = [(p, t, k % 2 == 0) for k, (p, t) in enumerate(TEXTS)]
    return contrast_of(trait_of(word), 0, renderer.styles[0], texts, "Who are you?", renderer)


def test_a_shared_frame_gives_what_scoring_gives(tiny_model: HFModel) -> None:
    made = texts_under(tiny_model)
    assert shared_length(made.pos) > 3
    for side in (made.pos, made.neg):
        with torch.no_grad():
            ours = log_likelihoods(tiny_model.module, side).numpy()
        theirs = np.array([s.log_likelihood for s in tiny_model.score(side)])
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    (ratio,) = contrast_ratios(tiny_model.module, [made])
    wanted = [
        a.log_likelihood - b.log_likelihood for a, b in zip(*map(tiny_model.score, (made.pos, made.neg)), strict=True)
    ]
    np.testing.assert_allclose(ratio.numpy(), wanted, atol=4e-4)


def test_a_prefix_longer_than_a_window_is_counted_right(tiny_models: dict[str, HFModel]) -> None:
    """Gemma 2's window slides past the frame; what is left of the frame must stand where it stood."""
    model = tiny_models["gemma2"]
    ids = tuple(int(k) for k in np.random.default_rng(0).integers(50, 390, 90))
    items = [Scorable((*ids, 60, 61, 62), 91), Scorable((*ids, 70, 71), 90)]
    with torch.no_grad():
        ours = log_likelihoods(model.module, items).numpy()
    alone = [model.score([item])[0].log_likelihood for item in items]
    np.testing.assert_allclose(ours, alone, atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_gradients_flow_through_the_shared_frame(name: str, tiny_folders: dict[str, Path]) -> None:
    """Against the same loss without sharing: every sequence by itself, the whole of it."""
    model = load_unpacked(resolve(str(tiny_folders[name])), device="cpu")
    made = texts_under(model)
    peft = attach_lora(model.module, rank=4, alpha=8, dropout=0.0, seed=0)
    # Adapters start where only one of their halves has a gradient.
    with torch.no_grad():
        for k, p in enumerate(q for q in peft.parameters() if q.requires_grad):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        peft.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in peft.parameters() if p.grad is not None])

    def alone(item: Scorable) -> torch.Tensor:
        ids = torch.tensor([item.token_ids])
        log_p = functional.log_softmax(model.module(input_ids=ids, use_cache=False).logits[0, :-1].float(), -1)
        return log_p.gather(-1, ids[0, 1:, None])[item.start - 1 :, 0].sum()

    shared = sum(contrast_passes(model.module, [made]), torch.zeros(()))
    plain = torch.zeros(())
    for p, n, is_pos in zip(made.pos, made.neg, made.is_pos, strict=True):
        own, other = (alone(p), alone(n)) if is_pos else (alone(n), alone(p))
        plain = plain + (functional.softplus(other - own) - LIKELY * own / p.n_scored) / len(made.pos)
    assert shared.item() == pytest.approx(plain.item(), abs=1e-4)
    a, b = gradient(shared), gradient(plain)
    assert float((a - b).norm() / b.norm()) < 1e-3


def test_tokens_are_counted_as_they_are_run(tiny_models: dict[str, HFModel]) -> None:
    made = texts_under(tiny_models["llama"])
    whole = sum(len(i.token_ids) for side in (made.pos, made.neg) for i in side)
    saved = 2 * (shared_length(made.pos) + shared_length(made.neg))
    assert made.n_tokens == whole - saved
    assert made.n_trained == 2 * sum(i.n_scored for i in made.pos)


FAST = SharpeningSettings(steps=150, learning_rate=1e-2, rank=16, held_out=0.25)


def sharpened(model: Path, folder: Path, items: DiagnosticSet, settings: SharpeningSettings = FAST) -> SharpeningRecord:
    cast = Cast("words", tuple(trait_of(w) for w in WORDS))
    return sharpen(str(model), cast, items, folder=folder, settings=settings, device="cpu")


def test_what_is_learnt_holds_for_traits_left_out(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Planted: whoever likes a thing loves it. Null: the texts of half of the traits are those of the other pole."""
    model = tiny_folders["llama"]
    done = sharpened(model, tmp_path / "planted", items_of(WORDS))
    assert done.after.auroc.mean() > 0.95
    assert done.gain.low > 0
    assert done.after.log_loss.mean() < done.before.log_loss.mean()
    first, second = items_of(WORDS[::2]), items_of(WORDS[1::2], pos="No {} for me, {}.", neg="I love {}, {}!")
    mixed = sharpened(model, tmp_path / "null", DiagnosticSet("mixed", first.items + second.items))
    assert mixed.after.auroc.mean() < 0.8
    assert mixed.gain.low <= 0
    used = load_model(done.use, device="cpu")
    assert isinstance(used, HFModel)
    made = texts_under(used, word="tea")
    assert used.card.digest != load_model(str(model), device="cpu").card.digest
    assert np.isfinite(contrast_ratios(used.module, [made])[0].numpy()).all()


def test_a_killed_sharpening_ends_with_the_same_bits(
    tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from personae.models import hf_training

    settings = replace(FAST, steps=6)
    whole = sharpened(tiny_folders["llama"], tmp_path / "whole", items_of(WORDS), settings)
    monkeypatch.setattr(hf_training, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(hf_training, "_COST", 0.0)

    def dies(step: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    cast = Cast("words", tuple(trait_of(w) for w in WORDS))
    with pytest.raises(KeyboardInterrupt):
        sharpen(
            str(tiny_folders["llama"]), cast, items_of(WORDS), folder=tmp_path / "cut", settings=settings, device="cpu",
            started=lambda n: dies,
        )  # fmt: skip
    again = sharpened(tiny_folders["llama"], tmp_path / "cut", items_of(WORDS), settings)
    assert again.resumed_from == 4
    files = [Path(r.adapter) / "adapter_model.safetensors" for r in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert again.after.auroc.tolist() == whole.after.auroc.tolist()


def test_steps_take_every_trait_in_turn(tiny_models: dict[str, HFModel]) -> None:
    model = tiny_models["base"]
    renderer = Renderer(model.tokenizer, context_length=256, base_styles=("dialogue", "story"))
    cast = Cast("words", tuple(trait_of(w) for w in WORDS))
    known = texts_of(cast, items_of(WORDS))
    steps = list(plan_steps(list(known.values()), renderer, replace(FAST, texts=2), 24))
    assert sorted(s.group for s in steps[:12]) == sorted(s.group for s in steps[12:]) == sorted(WORDS)
    assert all(sum(s.is_pos) == 2 and len(s.is_pos) == 4 for s in steps)
    assert steps == list(plan_steps(list(known.values()), renderer, replace(FAST, texts=2), 24))
    frames = {s.pos[0].token_ids[:3] for s in steps}
    assert len(frames) > 1  # both styles, both paraphrases


def test_traits_are_left_out_by_the_seed() -> None:
    trained, aside = split_traits(WORDS, FAST)
    assert len(aside) == 3
    assert sorted((*trained, *aside)) == sorted(WORDS)
    assert split_traits(WORDS, replace(FAST, seed=1))[1] != aside
    assert len(split_traits(WORDS[:4], replace(FAST, held_out=0.9))[0]) == 2


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"rank": 0}, {"texts": 0}, {"held_out": 1.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidSettings, match=next(iter(wrong)).replace("_", "-")):
        SharpeningSettings(**wrong)  # type: ignore[arg-type]


def test_too_few_traits_with_texts_are_refused() -> None:
    cast = Cast("words", tuple(trait_of(w) for w in WORDS))
    with pytest.raises(InvalidSettings, match="only 3 traits"):
        texts_of(cast, items_of(WORDS[:3]))


def test_what_an_instruction_quotes_is_not_used_under_it() -> None:
    likes, hates = ("Bread? Yes, always bread.", "More bread for me."), ("Bread? No, never bread.", "No bread for me.")

    def quoting(name: str, said: tuple[str, ...]) -> Persona:
        return Persona(f"bread/{name}", (f"You say: {said[0]}", f"You say: {said[0]} {said[1]}", "You do."))

    trait = Trait("bread", quoting("pos", likes), quoting("neg", hates))
    items = [Diagnostic(f"b{k}", "bread", "statement", str(k), likes[k], hates[k]) for k in (0, 1)]
    others = items_of(WORDS[1:5]).items
    found = texts_of(Cast("x", (trait, *map(trait_of, WORDS[1:5]))), DiagnosticSet("x", (*items, *others)))["bread"]
    assert found.usable == [0, 2]
    assert [t for _, t, _ in found.unquoted([0], True)] == [likes[1]]
    assert found.n_unquoted([0, 1]) == 0


def test_what_does_not_go_together_is_told() -> None:
    cast = Cast("words", tuple(trait_of(w) for w in WORDS[:6]))
    items = DiagnosticSet("x", (*items_of(WORDS[:5]).items, *items_of(["fog"]).items))
    notes = unmatched(cast, items, texts_of(cast, items))
    assert [WORDS[5] in notes[0], "fog" in notes[1]] == [True, True]
    assert unmatched(cast, items_of(WORDS[:6]), WORDS) == ()


def test_a_text_scored_under_other_tokens_is_no_contrast(tiny_models: dict[str, HFModel]) -> None:
    made = texts_under(tiny_models["llama"])
    with pytest.raises(AssertionError):
        Contrast(made.pos, made.pos[::-1], made.is_pos, "x")


def test_an_episode_of_one_token_context_has_nothing_to_share() -> None:
    assert shared_length([Scorable((5, 6), 1), Scorable((7, 6), 1)]) == 0
    assert Episode("e", (Turn("user", "x"),), "y").completion == "y"
