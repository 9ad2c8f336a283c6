"""Gradients in LoRA's B matrices: against finite differences of merged weights, row by row, packed or not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from personae.errors import MissingCapability
from personae.models.activations import Steering
from personae.models.gradients import GivesGradients, open_gradients, shift_gradients
from personae.models.hf import HFModel
from personae.models.hf_gradients import LoraGradients
from personae.models.hf_kernel import PackedLinear, pack_linears
from personae.models.load import load_model
from personae.models.protocol import Scorable

ITEMS = (Scorable((5, 6, 7, 8, 9, 10), 3), Scorable((11, 12, 13), 1), Scorable((20, 21, 22, 23, 5, 6, 7, 8), 6))


@contextmanager
def merged(gradients: LoraGradients, b: np.ndarray, size: float) -> Iterator[None]:
    """The model with size * B A added to its weights."""
    at, kept = 0, []
    try:
        for layer, a, width in zip(gradients._layers, gradients._a, gradients._widths, strict=True):
            part = torch.tensor(b[at : at + width * len(a)]).reshape(width, len(a)) @ a
            at += width * len(a)
            weight: Any = layer.weight
            kept.append((weight, weight.data.clone()))
            weight.data += size * (part.T if isinstance(layer, Conv1D) else part)
            repack(layer)
        yield
    finally:
        for weight, before in kept:
            weight.data.copy_(before)
        for layer in gradients._layers:
            repack(layer)


def repack(layer: torch.nn.Module) -> None:
    """A packed layer computes with a copy of its weight."""
    if isinstance(layer, PackedLinear):
        layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight, 512)


def total(model: HFModel, w: np.ndarray) -> float:
    return float(w @ [r.log_likelihood for r in model.score(ITEMS)])


def test_gradients_are_those_of_finite_differences(tiny_model: HFModel) -> None:
    model, gradients = tiny_model, LoraGradients(tiny_model, rank=4, seed=1)
    w = np.array([1.0, -2.0, 0.5])
    found = gradients.gradients(ITEMS, w[None])[0]
    assert found.shape == (gradients.n_parameters,)
    rng, slopes, products = np.random.default_rng(0), [], []
    for _ in range(4):
        b = rng.normal(size=gradients.n_parameters).astype(np.float32)
        b += 10 * found / np.linalg.norm(found) * rng.normal()
        values = []
        for size in (-2e-3, 2e-3):
            with merged(gradients, b, size):
                values.append(total(HFModel(model.module, model.tokenizer, model.card), w))
        slopes.append((values[1] - values[0]) / 4e-3)
        products.append(float(found.astype(np.float64) @ b))
    assert products == pytest.approx(slopes, rel=0.03, abs=0.03 * np.abs(slopes).max())


def test_rows_add_up_to_the_gradient(tiny_model: HFModel) -> None:
    gradients = LoraGradients(tiny_model, rank=2)
    w = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.5, -1.0, 2.0]])
    by_row = gradients.gradients(ITEMS, w)
    assert by_row[3] == pytest.approx(w[3] @ by_row[:3], rel=1e-3, abs=1e-4)
    products = gradients.products(ITEMS, by_row)
    assert products == pytest.approx(by_row[:3].astype(np.float64) @ by_row.T, rel=1e-3, abs=1e-3)


def test_a_packed_kernel_changes_nothing_and_the_model_is_left_as_it_was(tiny_models: dict[str, HFModel]) -> None:
    plain = tiny_models["llama"]
    asked = [p.requires_grad for p in plain.module.parameters()]
    before = [r.log_probs for r in plain.score(ITEMS)]
    expected = LoraGradients(plain, rank=2).gradients(ITEMS, np.ones((1, 3)))
    try:
        module = copy.deepcopy(plain.module)
        assert pack_linears(module) > 0
        found = LoraGradients(HFModel(module, plain.tokenizer, plain.card), rank=2).gradients(ITEMS, np.ones((1, 3)))
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        pytest.skip(f"no packed kernel here: {error}")
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    after = [r.log_probs for r in plain.score(ITEMS)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert [p.requires_grad for p in plain.module.parameters()] == asked
    assert not any("forward" in m.__dict__ for m in plain.module.modules())


def test_a_step_changes_a_measure_as_the_product_says(tiny_models: dict[str, HFModel]) -> None:
    """First order: along the data's gradient the measure changes by rate times the inner product."""
    model = tiny_models["llama"]
    gradients = LoraGradients(model, rank=8)
    data, measure = gradients.gradients(ITEMS, np.array([[1.0, 0, 0], [0, 1.0, -1.0]]))
    rate = 1e-3 / np.abs(data).max()
    with merged(gradients, data, rate):
        moved = total(HFModel(model.module, model.tokenizer, model.card), np.array([0, 1.0, -1.0]))
    change = moved - total(HFModel(model.module, model.tokenizer, model.card), np.array([0, 1.0, -1.0]))
    assert change == pytest.approx(rate * float(data @ measure), rel=0.1)


def test_one_pass_also_shows_likelihoods_and_states(tiny_models: dict[str, HFModel]) -> None:
    """The pass that gives gradients sees what scoring and reading see, also under an edit of the stream."""
    from personae.models.activations import Steering

    model = tiny_models["llama"]
    vector = np.linspace(-1, 1, model.d_model).astype(np.float32)
    weights = np.ones((1, 3))
    plain = LoraGradients(model, rank=2).passed(ITEMS, weights, layer=1)
    with model.steered([Steering(0, vector, 3.0)]) as view:
        edited = LoraGradients(view, rank=2).passed(ITEMS, weights, layer=1)
        for found, seen in ((plain, model), (edited, view)):
            assert found.log_likelihood == pytest.approx([r.log_likelihood for r in seen.score(ITEMS)], abs=1e-3)
            states = np.stack([a[0] for a in seen.read(ITEMS, layers=[1])])
            assert found.states == pytest.approx(states, abs=1e-4)
    assert plain.gradients == pytest.approx(LoraGradients(model, rank=2).gradients(ITEMS, weights))
    assert np.abs(plain.gradients - edited.gradients).max() > 0.1 * np.abs(plain.gradients).max()


def test_a_model_without_weights_is_refused(tiny_models: dict[str, HFModel]) -> None:
    class Server:
        card = tiny_models["llama"].card

    with pytest.raises(MissingCapability, match="no weights here"):
        open_gradients(Server())  # type: ignore[arg-type]
    assert isinstance(open_gradients(tiny_models["llama"]), GivesGradients)


def test_gradients_of_shifts_are_those_of_finite_differences(tiny_model: HFModel) -> None:
    """A small shift after a block moves each request by its own gradient, to first order; other blocks likewise."""
    items = [Scorable(tuple(range(5, 5 + n)), start) for n, start in ((12, 4), (9, 1), (17, 16))]
    found = shift_gradients(tiny_model, items)
    assert found.shape == (3, tiny_model.n_layers, tiny_model.d_model)
    before = np.array([s.log_likelihood for s in tiny_model.score(items)])
    rng = np.random.default_rng(0)
    for layer in range(tiny_model.n_layers):
        v = rng.normal(size=tiny_model.d_model).astype(np.float32)
        moved = []
        for size in (2e-3, -2e-3):
            with tiny_model.steered([Steering(layer, v, size)]) as view:
                moved.append(np.array([s.log_likelihood for s in view.score(items)]))
        slope = (moved[0] - moved[1]) / 4e-3
        np.testing.assert_allclose(found[:, layer] @ v, slope, rtol=0.02, atol=0.02)
    np.testing.assert_array_equal(before, [s.log_likelihood for s in tiny_model.score(items)])


def test_shifts_of_a_model_without_weights_are_refused() -> None:
    with pytest.raises(MissingCapability, match="no weights here"):
        shift_gradients(load_model("world:tiny/exact"), [])
