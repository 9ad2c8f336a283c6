"""Starting vLLM in this process; the only module that imports it.

Not here: what is asked of it (`models.vllm`).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from personae.errors import BackendError, InvalidSettings, MissingCapability
from personae.models.catalogue import VLLM_INSTALL

BLOCK = 32  # tokens of its prefix cache that are kept or found as one; the processor's kernels want multiples of 32
# Read by vLLM when it is imported; what the user has set counts.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: the same requests are scheduled in the same way
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; its own default takes half of the machine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # OMP_NUM_THREADS counts, as everywhere in personae
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
# What an engine that cannot be started, or fails at work, passes on from the libraries below it.
_FAILURES = (RuntimeError, ValueError, OSError, AssertionError, KeyError, AttributeError)


class Engine(Protocol):
    """The part of `vllm.LLM` that is used."""

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool) -> Sequence[Any]:
        """One output for each prompt, in the order given."""
        ...

    def reset_prefix_cache(self) -> bool:
        """Forget what was read."""
        ...


def failures() -> tuple[type[BaseException], ...]:
    """What the engine raises, its own errors included once it has been imported."""
    own = getattr(sys.modules.get("vllm.exceptions"), "VLLMError", None)
    return _FAILURES if own is None else (*_FAILURES, own)


def start_engine(name: str, folder: Path, device: str, dtype: str) -> tuple[Any, Callable[..., Any], str, str]:
    """The engine, its class of settings, its version, and the kind of device it is for.

    Args:
        name: What the user called the model.
        folder: Its files.
        device: "auto", or the kind of device that this build of vLLM is for.
        dtype: Its arithmetic.

    Raises:
        MissingCapability: If vLLM is not installed.
        InvalidSettings: If the device is another one.
        BackendError: If it cannot run the model.
    """
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    with _stdout_elsewhere(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the libraries under it about each other
        try:
            import vllm  # type: ignore[import-not-found]  # in an environment of its own
            from vllm.platforms import current_platform  # type: ignore[import-not-found]
        except ModuleNotFoundError as error:
            raise MissingCapability(
                f"'{name}' needs the package '{error.name}', which is not installed.", hint=VLLM_INSTALL
            ) from error
        except (ImportError, RuntimeError, OSError) as error:  # a build for other hardware or another torch
            raise BackendError(f"vLLM cannot be imported: {first_line(error)}", hint=VLLM_INSTALL) from error
        where = str(current_platform.device_type)
        if device not in ("auto", where):
            raise InvalidSettings(f"--device is '{device}', and this build of vLLM is for '{where}'.")
        options: dict[str, object] = {"block_size": BLOCK} if where == "cpu" else {}
        try:
            engine = vllm.LLM(
                model=str(folder),
                dtype=dtype,
                skip_tokenizer_init=True,  # it is given token ids and gives them back
                generation_config="vllm",  # nothing of the model's folder changes how is sampled
                enable_prefix_caching=True,
                enforce_eager=True,
                max_logprobs=-1,
                distributed_executor_backend="uni",
                use_tqdm_on_load=False,
                seed=0,
                **options,
            )
        except failures() as error:
            raise BackendError(
                f"vLLM cannot run '{name}': {first_line(error)}",
                hint="On processors VLLM_CPU_KVCACHE_SPACE (GiB) sets the memory for its cache. "
                f"Without vLLM: {name.removeprefix('vllm:')}",
            ) from error
    return engine, vllm.SamplingParams, str(vllm.__version__), where


@contextmanager
def _stdout_elsewhere() -> Iterator[None]:
    """Send what libraries print to standard error: standard output is for results."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error itself where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
