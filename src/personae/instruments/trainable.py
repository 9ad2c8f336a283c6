"""Can a model be trained here? Asked before anything is loaded. Not here: training (`instruments.training`)."""

from __future__ import annotations

from importlib.util import find_spec

from personae.errors import MissingCapability
from personae.models.catalogue import ModelSource, resolve

_INSTALL = "Install it: pip install 'personae[hf,train]'"


def require_trainable(model: str) -> ModelSource:
    """Where a model comes from; says at once, before anything is loaded, if it cannot be trained here.

    Raises:
        MissingCapability: If there are no weights to train, or a package that trains is not installed.
        ModelNotFound, CorruptModel: As `catalogue.resolve`.
    """
    source = resolve(model)
    if source.root.kind == "exact":
        raise MissingCapability(
            f"'{model}' is a closed form and cannot be trained.",
            hint=f"Train the transformer of that world: {model.removesuffix('/exact')}",
        )
    if source.root.kind in ("server", "vllm"):
        raise MissingCapability(
            f"'{model}' is run elsewhere and cannot be trained.",
            hint="Name a model that personae loads itself: an embedded one, a folder, a .gguf file or a hub id.",
        )
    _require_packages()
    return source


def _require_packages() -> None:
    for name in ("torch", "peft", "trl"):
        if find_spec(name) is None:
            raise MissingCapability(f"training needs the package '{name}', which is not installed.", hint=_INSTALL)
