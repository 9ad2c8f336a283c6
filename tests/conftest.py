"""What every test gets: a temporary home, no network, and tiny models to ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Read once, when the libraries are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

if TYPE_CHECKING:
    from personae.models.hf import HFModel


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for the session; tests whose result depends on what it holds ask for `own_home`."""
    home = tmp_path_factory.mktemp("personae-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONAE_HOME", str(home))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield home


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for one test, empty."""
    home = tmp_path / "home"
    monkeypatch.setenv("PERSONAE_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face folders of the tiny models, by name."""
    from tiny_models import build_folders

    return build_folders(tmp_path_factory.mktemp("tiny-models"))


@pytest.fixture(scope="session")
def tiny_models(tiny_folders: dict[str, Path], session_home: Path) -> dict[str, HFModel]:
    """The tiny models as a user loads them, by name."""
    from personae.models.catalogue import resolve
    from personae.models.hf_load import load_hf

    return {name: load_hf(resolve(str(folder)), device="cpu") for name, folder in tiny_folders.items()}


@pytest.fixture(scope="session", params=("llama", "qwen3", "gemma2", "gpt2", "base"))
def tiny_model(request: pytest.FixtureRequest, tiny_models: dict[str, HFModel]) -> HFModel:
    """Each tiny model in turn."""
    return tiny_models[request.param]
