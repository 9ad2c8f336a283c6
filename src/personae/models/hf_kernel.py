"""A faster exact fp32 matrix kernel for CPUs: prepacked oneDNN weights instead of the default BLAS.

The BLAS that PyTorch calls on x86 chooses narrow vector code on processors of one vendor; oneDNN does not.
Same arithmetic (fp32 in, fp32 accumulate), other order of summation. Whether it is used is decided by
measurement on the model's own shapes and only if it agrees with the plain kernel; the choice is recorded
in the model's card. Training an adapter uses it too, forwards and backwards, since the weights under an adapter
are frozen. Not here: lower precision, which personae does not use for evidence (see NOTES.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_PROBE_ROWS = 512
_LEAST_GAIN = 1.15
_LARGEST_RELATIVE_ERROR = 1e-5


class PackedLinear(nn.Module):
    """A linear layer whose weight is stored in the layout the oneDNN kernel wants. Inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PROBE_ROWS)
        # Declared as always there, and None for layers without one.
        self.bias = linear.bias.detach() if isinstance(linear.bias, Tensor) else None
        # Code that inspects a layer's weight (dtype, device) still finds one; nothing is copied.
        self.register_buffer("weight", weight, persistent=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Same as `nn.Linear`: (..., in_features) to (..., out_features)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class FrozenLinear(nn.Module):
    """A linear layer whose weight is never trained: `PackedLinear` with a gradient for its input.

    It holds the weight in two packed layouts, for y = x W' + b and for dx = dy W, and not in the plain one.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PROBE_ROWS)
        self.packed_back = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous(), _PROBE_ROWS)
        self.bias = linear.bias.detach() if isinstance(linear.bias, Tensor) else None
        # Shape, dtype and device for code that asks, without the numbers.
        self.register_buffer("weight", weight.new_zeros(1).expand(weight.shape), persistent=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Same as `nn.Linear`: (..., in_features) to (..., out_features)."""
        return _FrozenProduct.apply(x, self)  # pyright: ignore[reportReturnType]


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), layer.packed, layer.bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        dx = torch.ops.mkldnn._linear_pointwise(grads[0].contiguous(), ctx.layer.packed_back, None, "none", [], "")
        return dx, None


def _seconds(run: Callable[[], Tensor]) -> float:
    run()
    times: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def packed_kernel_helps(linear: nn.Linear) -> bool:
    """Whether the packed kernel exists here, agrees with the plain one, and is at least 1.15 times as fast."""
    has_op = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    weight = linear.weight
    if not has_op or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_PROBE_ROWS, linear.in_features, generator=generator)
    try:
        packed = PackedLinear(linear)
        with torch.inference_mode():
            exact, ours = linear(x), packed(x)
            close = bool((ours - exact).abs().max() <= _LARGEST_RELATIVE_ERROR * exact.abs().max())
            return close and _seconds(lambda: linear(x)) > _LEAST_GAIN * _seconds(lambda: packed(x))
    except RuntimeError:
        # The operator is registered but not built for this processor: the plain kernel is always right.
        return False


def pack_linears(model: nn.Module) -> int:
    """Replace every `nn.Linear` under `model` by its packed twin; return how many were replaced."""
    return _replace(model, PackedLinear)


def pack_frozen(model: nn.Module) -> int:
    """Replace every `nn.Linear` that is not trained by its twin with a gradient; return how many were replaced."""
    return _replace(model, FrozenLinear)


def _replace(model: nn.Module, twin: Callable[[nn.Linear], nn.Module]) -> int:
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not child.weight.requires_grad:
                setattr(parent, name, twin(child))
                replaced += 1
    return replaced
