"""From a model's name to a backend, importing only what that backend needs."""

from __future__ import annotations

import os

from personae.errors import MissingCapability
from personae.models.catalogue import resolve
from personae.models.protocol import LanguageModel


def load_model(name: str, *, device: str = "auto", dtype: str = "float32") -> LanguageModel:
    """Load the model of that name.

    Raises:
        ModelNotFound, CorruptModel, InvalidSettings: See `catalogue.resolve` and `hf_load.load_hf`.
            The closed form of a world needs no packages, device or dtype.
        MissingCapability: If the packages for this kind of model are not installed.
    """
    source = resolve(name)
    if source.kind == "exact":
        from personae.models.exact import ExactModel

        assert source.world is not None
        return ExactModel(source.world, name)
    # The library's own progress bars would run into ours; it reads this when it is first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        from personae.models.hf_load import load_hf
    except ModuleNotFoundError as error:
        raise MissingCapability(
            f"'{name}' needs the package '{error.name}', which is not installed.",
            hint="Install it: pip install 'personae[hf]'",
        ) from error
    return load_hf(source, device=device, dtype=dtype)
