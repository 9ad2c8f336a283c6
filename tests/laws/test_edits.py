"""Reading and editing activations obeys its laws on every tiny family; each law notices a model that breaks it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from personae.errors import InvalidSettings, MissingCapability, NumericsError
from personae.instruments.steering import while_training
from personae.models.activations import (
    Capping,
    Edit,
    EditableModel,
    ReadsActivations,
    Steering,
    WritesActivations,
    edited_digest,
    require_activations,
)
from personae.models.exact import ExactModel
from personae.models.hf import HFModel
from personae.models.hf_hooks import decoder_blocks, edited
from personae.models.laws import check_laws
from personae.models.protocol import Scorable
from personae.worlds.reading import read_world, shipped_worlds

IDS = list(range(5, 25))
EDIT_LAWS = {"reading", "null edits", "edits"}


def broken(model: HFModel) -> set[str]:
    return {v.law for v in check_laws(model) if not v.holds}


def clone(model: HFModel, kind: type[HFModel] = HFModel) -> HFModel:
    return kind(model.module, model.tokenizer, model.card)


def test_every_tiny_model_obeys(tiny_model: HFModel) -> None:
    verdicts = {v.law: v for v in check_laws(tiny_model)}
    assert set(verdicts) >= EDIT_LAWS
    assert all(verdicts[law].holds for law in EDIT_LAWS), verdicts
    assert isinstance(tiny_model, ReadsActivations)
    assert isinstance(tiny_model, WritesActivations)


class ReadsOnePlaceLate(HFModel):
    def read(self, batch, *, layers=None, reduce="response_mean"):
        late = [Scorable(i.token_ids, min(i.start + 1, len(i.token_ids) - 1), i.shared) for i in batch]
        return super().read(late if reduce == "response_mean" else batch, layers=layers, reduce=reduce)


class ReadsTheFirstToken(HFModel):
    """The last prompt token is taken for the first of the response."""

    def read(self, batch, *, layers=None, reduce="response_mean"):
        if reduce != "prompt_last":
            return super().read(batch, layers=layers, reduce=reduce)
        return [r[:, 0] for r in super().read(batch, layers=layers, reduce="tokens")]


class ReadsLayersInOrder(HFModel):
    """Whatever order was asked for."""

    def read(self, batch, *, layers=None, reduce="response_mean"):
        return super().read(batch, layers=None if layers is None else sorted(layers), reduce=reduce)


class SharesPrefixes(HFModel):
    """Keys and values of an unedited pass serve the edited one."""

    @contextmanager
    def steered(self, edits: Sequence[Edit]) -> Iterator[HFModel]:
        with super().steered(edits) as view:
            view._prefixes = self._prefixes.copy()
            yield view


class LeavesHooks(HFModel):
    @contextmanager
    def steered(self, edits: Sequence[Edit]) -> Iterator[HFModel]:
        with super().steered(edits) as view:
            yield view
        self._edits = (*self._edits, *edits)
        self._prefixes.clear()


class EditsItself(HFModel):
    """Nothing is left behind, but the model is edited while its view is open."""

    @contextmanager
    def steered(self, edits: Sequence[Edit]) -> Iterator[HFModel]:
        with super().steered(edits) as view:
            self._edits = tuple(edits)
            self._prefixes.clear()
            yield view
        self._edits = ()
        self._prefixes.clear()


class ForgetsAfterExceptions(HFModel):
    @contextmanager
    def steered(self, edits: Sequence[Edit]) -> Iterator[HFModel]:
        self._edits = tuple(edits)
        self._prefixes.clear()
        with super().steered([]) as view:
            yield view
        self._edits = ()
        self._prefixes.clear()


class EditsOneLayerEarly(HFModel):
    @contextmanager
    def steered(self, edits: Sequence[Edit]) -> Iterator[HFModel]:
        with super().steered([replace(e, layer=max(0, e.layer - 1)) for e in edits]) as view:
            yield view


class CapsTooLow(HFModel):
    """The floor is multiplied by the length of a vector that was not normalised."""

    @contextmanager
    def steered(self, edits: Sequence[Edit]) -> Iterator[HFModel]:
        moved = [replace(e, floor=e.floor - 0.5 * abs(e.floor) - 1) if isinstance(e, Capping) else e for e in edits]
        with super().steered(moved) as view:
            yield view


class IgnoresEdits(HFModel):
    @contextmanager
    def steered(self, edits: Sequence[Edit]) -> Iterator[HFModel]:
        with super().steered([]) as view:
            yield view


class SlipsAtZero(HFModel):
    """An edit of size 0 passes through arithmetic that is not exact."""

    @contextmanager
    def steered(self, edits: Sequence[Edit]) -> Iterator[HFModel]:
        moved = [replace(e, coefficient=e.coefficient or 1e-6) if isinstance(e, Steering) else e for e in edits]
        with super().steered(moved) as view:
            yield view


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (ReadsOnePlaceLate, "reading"),
        (ReadsTheFirstToken, "reading"),
        (ReadsLayersInOrder, "reading"),
        (SharesPrefixes, "edits"),
        (LeavesHooks, "null edits"),
        (EditsItself, "null edits"),
        (ForgetsAfterExceptions, "null edits"),
        (EditsOneLayerEarly, "edits"),
        (CapsTooLow, "edits"),
        (IgnoresEdits, "null edits"),
        (SlipsAtZero, "null edits"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_broken_model_is_caught(tiny_models: dict[str, HFModel], kind: type[HFModel], law: str) -> None:
    assert law in broken(clone(tiny_models["llama"], kind))


def direction(model: HFModel, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=model.d_model).astype(np.float32)


def test_views_of_views_add_up_and_end(tiny_model: HFModel) -> None:
    item, v = Scorable(tuple(range(5, 25)), 8, 3), direction(tiny_model)
    with tiny_model.steered([Steering(0, v, 1.0)]) as one, one.steered([Steering(0, v, 2.0)]) as both:
        twice = both.score([item])[0].log_probs
        assert isinstance(both, EditableModel)
    with tiny_model.steered([Steering(0, v, 3.0)]) as view:
        assert np.allclose(twice, view.score([item])[0].log_probs, atol=1e-4)
    with pytest.raises(InvalidSettings, match="after its end"):
        view.score([item])


def test_no_hook_is_left(tiny_model: HFModel) -> None:
    blocks = decoder_blocks(tiny_model.module)
    item = Scorable(tuple(range(5, 25)), 8, 3)
    with tiny_model.steered([Steering(1, direction(tiny_model), 1.0)]) as view:
        view.read([item], layers=[0])
        view.score([item])
    with pytest.raises(ZeroDivisionError), edited(tiny_model.module, [Steering(0, direction(tiny_model), 1.0)]):
        raise ZeroDivisionError
    assert all(not b._forward_hooks for b in blocks)


def test_the_card_of_a_view_has_a_digest_of_its_own(tiny_model: HFModel) -> None:
    """Otherwise the store would hand an edited model's rows to the model."""
    v, own = direction(tiny_model), tiny_model.card.digest
    made = [[Steering(0, v, 1.0)], [Steering(1, v, 1.0)], [Steering(0, v, 2.0)], [Capping(0, v, 1.0)]]
    digests = [edited_digest(own, edits) for edits in made]
    assert len({own, *digests}) == 5
    assert edited_digest(own, [Steering(0, v, 0.0)]) == own
    with tiny_model.steered(made[0]) as view:
        assert view.card.digest == digests[0]


def test_bad_edits_are_refused(tiny_model: HFModel) -> None:
    v = direction(tiny_model)
    cases: list[tuple[Edit, type[Exception], str]] = [
        (Steering(2, v, 1.0), InvalidSettings, "layer 2 does not exist"),
        (Steering(-1, v, 1.0), InvalidSettings, "layer -1 does not exist"),
        (Steering(0, v[:-1], 1.0), InvalidSettings, "another model|width"),
        (Steering(0, 0 * v, 1.0), InvalidSettings, "zero everywhere"),
        (Steering(0, v, float("nan")), NumericsError, "not a finite"),
        (Capping(0, v * np.float32("inf"), 0.0), NumericsError, "not a finite"),
        (Capping(0, v, float("inf")), NumericsError, "not a finite"),
    ]
    for edit, kind, words in cases:
        with pytest.raises(kind, match=words), tiny_model.steered([edit]):
            pass
    with pytest.raises(InvalidSettings, match="does not exist"):
        tiny_model.read([Scorable((1, 2, 3), 1)], layers=[5])


def test_a_closed_form_says_that_it_has_no_activations() -> None:
    model = ExactModel(read_world(sorted(shipped_worlds())[0]), "world:x/exact")
    with pytest.raises(MissingCapability, match="no activations"):
        require_activations(model)


def test_gradients_flow_through_edits_and_training_moves_against_them(tiny_folders: dict[str, Path]) -> None:
    """Preventative steering: with the push in place the same data ask less of the weights along it."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny_folders["llama"], dtype=torch.float32).train()
    v = np.random.default_rng(0).normal(size=32).astype(np.float32)
    ids = torch.tensor([IDS])

    def gradient() -> torch.Tensor:
        module.zero_grad()
        module(input_ids=ids, labels=ids).loss.backward()
        return module.get_input_embeddings().weight.grad.clone()

    plain = gradient()
    with while_training([Steering(0, v, 1.0)])(module):
        pushed = gradient()
    assert torch.isfinite(pushed).all()
    assert not torch.allclose(plain, pushed), "the push is part of what is differentiated"
    assert torch.equal(gradient(), plain), "and gone after"
