"""From a model's name to a backend, importing only what that backend needs."""

from __future__ import annotations

import os

from personae.errors import InvalidSettings, MissingCapability
from personae.models.catalogue import resolve
from personae.models.protocol import GivesText, LanguageModel, Tokenizer

_EXTRA = {"httpx": "http"}


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    tokenizer: str | None = None,
    workers: int | None = None,
) -> LanguageModel:
    """Load the model of that name.

    Args:
        name: See `catalogue.resolve`.
        device: Where it runs; a server and the closed form of a world need none, vLLM has the one it was built for.
        dtype: Its arithmetic; of a server, the arithmetic it is held to.
        tokenizer: For a server: where its tokenizer is, if the server does not say.
        workers: For a server: requests at once.

    Raises:
        ModelNotFound, CorruptModel, InvalidSettings: See `catalogue.resolve` and `hf_load.load_hf`.
        MissingCapability: If the packages for this kind of model are not installed, or a server cannot score.
        BackendError: If vLLM cannot run it.
        ServerError: If a server fails.
    """
    source = resolve(name)
    if source.kind == "server":
        try:
            from personae.models.http import connect
        except ModuleNotFoundError as error:
            raise _missing(name, error) from error
        return connect(name, dtype=dtype, tokenizer=tokenizer, workers=workers)
    if tokenizer is not None:
        raise InvalidSettings(f"--tokenizer is for servers; '{name}' brings its own.", hint="Leave --tokenizer out.")
    if source.kind == "exact":
        from personae.models.exact import ExactModel

        assert source.world is not None
        return ExactModel(source.world, name)
    _quiet_libraries()
    if source.kind == "vllm":
        try:
            from personae.models.vllm import load_vllm
        except ModuleNotFoundError as error:
            raise _missing(name, error) from error
        return load_vllm(source, device=device, dtype=dtype)
    try:
        from personae.models.hf_load import load_hf
    except ModuleNotFoundError as error:
        raise _missing(name, error) from error
    return load_hf(source, device=device, dtype=dtype)


def load_chat(name: str, *, workers: int | None = None) -> GivesText:
    """A server's chat model, of which only the text is wanted.

    Raises:
        InvalidSettings: If the address or the model's name is wrong.
        MissingCapability: If httpx is not installed.
        ServerError: If the server fails or refuses.
    """
    try:
        from personae.models.http_chat import HTTPChat
    except ModuleNotFoundError as error:
        raise _missing(name, error) from error
    return HTTPChat(name, workers=workers)


def load_tokenizer(name: str) -> tuple[Tokenizer, str, int]:
    """The tokenizer of a model that need not be loaded: itself, its digest, and the context it is made for.

    Raises:
        ModelNotFound, CorruptModel: If there is none of that name, or it cannot be read.
        MissingCapability: If the packages for it are not installed.
    """
    source = resolve(name)
    source = source.weights or source
    if source.kind == "server":
        raise InvalidSettings(f"--tokenizer is '{name}', a server.", hint="Name a folder, a hub id or a model.")
    if source.kind == "exact":
        from personae.models.exact import ExactModel

        assert source.world is not None
        model = ExactModel(source.world, name)
        return model.tokenizer, model.card.tokenizer_digest, model.card.context_length
    _quiet_libraries()
    try:
        from personae.models.hf_load import load_hf_tokenizer
    except ModuleNotFoundError as error:
        raise _missing(name, error) from error
    return load_hf_tokenizer(source)


def _quiet_libraries() -> None:
    # The library's own progress bars would run into ours; it reads this when it is first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")


def _missing(name: str, error: ModuleNotFoundError) -> MissingCapability:
    extra = _EXTRA.get(str(error.name).split(".")[0], "hf")
    return MissingCapability(
        f"'{name}' needs the package '{error.name}', which is not installed.",
        hint=f"Install it: pip install 'personae[{extra}]'",
    )
