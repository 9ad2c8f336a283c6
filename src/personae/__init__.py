"""Which character is this language model, and which one will your training data make it?

The public names, resolved on first use so that `import personae` stays quick.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "Cast": "personae.domain.persona",
    "Episode": "personae.domain.episode",
    "Evidence": "personae.tables.evidence",
    "Persona": "personae.domain.persona",
    "PersonaeError": "personae.errors",
    "Renderer": "personae.models.rendering",
    "Screening": "personae.tables.forecast",
    "Trait": "personae.domain.persona",
    "Turn": "personae.domain.episode",
    "check_laws": "personae.models.laws",
    "load_casts": "personae.files.casts",
    "load_model": "personae.models.load",
    "load_reference": "personae.files.reference",
    "read_episodes": "personae.files.episodes",
    "screen": "personae.protocols.screen",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'personae' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
