"""LoRA adapters: put onto a model, written, read back, and merged into the weights they were made for.

    ADAPTER/adapter_config.json  adapter_model.safetensors   as peft writes them, for any tool that reads peft's
            personae.json                                    base model and its digest, checksums of the files

An adapter is merged in float32 before the weights are cast or packed, so a model with one scores as fast as
without. An adapter that says which weights it was made for fits those and no others; one by another tool is held
to the shapes. LoRA: Hu et al. 2021, arXiv 2106.09685. Not here: training (`models.hf_training`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from personae.errors import CorruptModel, InvalidSettings, StorageError
from personae.models.catalogue import MANIFEST, SCORERS, TRAINED
from personae.worlds.folder import write_whole

WEIGHTS = "adapter_model.safetensors"
ADAPTER_VERSION = 1
# Fields of a configuration that decide what its tensors add to the weights.
_MERGED_BY = (
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "bias",
    "target_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
)


def attach_lora(model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, seed: int) -> PeftModel:
    """A new adapter on every linear layer but the vocabulary's; it changes nothing until it is trained.

    Args:
        model: Whose layers get adapters; its own weights are frozen.
        rank: Of the update of each layer.
        alpha: The update is scaled by alpha / rank.
        dropout: Share of inputs of the adapter that are dropped while training.
        seed: Of the initial weights; the global generators are not touched.

    Raises:
        InvalidSettings: If the model has no such layer.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  (declared an int, used as a factor)
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = _wrapped(model, config)
        except ValueError as error:
            raise InvalidSettings(
                f"this model has no layers an adapter could go to: {error}", hint="Train it whole with --full."
            ) from error
    return made


def _wrapped(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    config.base_model_name_or_path = None  # where it was trained is no matter of the weights
    with warnings.catch_warnings():
        # peft asks by a name that transformers has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        made = get_peft_model(model, config)
    assert isinstance(made, PeftModel)
    return made


def write_adapter(model: PeftModel, target: Path, *, base: str, base_digest: str, source: str = TRAINED) -> None:
    """Write an adapter's folder whole or not at all.

    Args:
        model: With the adapter on it.
        target: The folder; replaced if it is there.
        base: What the user called the model.
        base_digest: Of its weights, by `ModelCard.digest`.
        source: The command that made it.

    Raises:
        StorageError: If it cannot be written; what was at `target` stays.
    """

    def fill(made: Path) -> None:
        config = model.peft_config["default"]
        named, config.base_model_name_or_path = config.base_model_name_or_path, base
        try:
            config.save_pretrained(str(made))
        finally:
            config.base_model_name_or_path = named
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        body = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
        (made / WEIGHTS).write_bytes(body)

    write_folder(target, fill, {"source": source, "base": base, "base_digest": base_digest})


def write_folder(target: Path, fill: Callable[[Path], None], note: dict[str, object]) -> None:
    """Write a folder aside, with checksums, and put it in place when it is complete.

    Raises:
        StorageError: If it cannot be written; what was at `target` stays.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as aside:
            made = Path(aside) / "made"
            made.mkdir()
            fill(made)
            files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(made.iterdir()) if p.is_file()}
            body = json.dumps({"version": ADAPTER_VERSION, **note, "files": files}, indent=1)
            write_whole(made / MANIFEST, body.encode())
            shutil.rmtree(target, ignore_errors=True)
            made.replace(target)
    except (OSError, SafetensorError, StorageError) as error:
        raise StorageError(
            f"{target} cannot be written: {getattr(error, 'strerror', None) or error}.",
            hint="Free some space and give the same command again: it goes on from the last kept state.",
        ) from error


def merge_adapter(model: PreTrainedModel, folder: Path, name: str, base_digest: str) -> tuple[PreTrainedModel, str]:
    """Add an adapter's update to the weights.

    Args:
        model: In float32; changed in place.
        folder: Of the adapter.
        name: What the user called the whole.
        base_digest: Of the model's weights.

    Returns:
        The model, and the digest of the adapter.

    Raises:
        InvalidSettings: If the adapter was made for another model.
        CorruptModel: If its files are damaged, or hold numbers that are not finite.
    """
    check_note(folder, name, base_digest)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CorruptModel(
            f"the adapter {folder} cannot be read: {error}", hint="Train it or fetch it again."
        ) from error
    if bad := [k for k, v in tensors.items() if not bool(torch.isfinite(v).all())]:
        raise CorruptModel(
            f"the adapter {folder} holds numbers that are not finite, first in {bad[0]}.",
            hint="Its training diverged: use an earlier checkpoint, or train with a lower --learning-rate.",
        )
    config.inference_mode = True
    other = "It was made for another model: name the model it was trained on before the '+'."
    try:
        wrapped = _wrapped(model, config)
        result: Any = set_peft_model_state_dict(wrapped, tensors)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InvalidSettings(f"the adapter {folder} does not fit '{name}': {reason}", hint=other) from error
    missing = [k for k in result.missing_keys if "lora_" in k]
    if result.unexpected_keys or missing:
        first = [*result.unexpected_keys, *missing][0]
        raise InvalidSettings(f"the adapter {folder} does not fit '{name}': it differs in {first}.", hint=other)
    merged: Any = wrapped.merge_and_unload()
    # peft leaves its configuration behind, and would warn of it when a second adapter is put on.
    vars(merged).pop("peft_config", None)
    digest = hashlib.blake2b((folder / WEIGHTS).read_bytes() + _essence(config), digest_size=16).hexdigest()
    return merged, digest


def _essence(config: PeftConfig) -> bytes:
    """What of a configuration changes the merged weights: not names, nor fields that another version of peft has."""
    fields = {k: v for k, v in config.to_dict().items() if k in _MERGED_BY}
    return json.dumps(fields, sort_keys=True, default=sorted).encode()


def check_note(folder: Path, name: str, base_digest: str) -> None:
    """Checksums, and whether the recorded base is the one at hand; nothing to check for adapters of other tools.

    Raises:
        InvalidSettings: If it was made for other weights.
        CorruptModel: If a file is not what was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    shipped = name in SCORERS
    again = "Install personae again." if shipped else "Use another checkpoint, or train it again."
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        version, files = note["version"], dict(note["files"])
        base, made_for = str(note["base"]), str(note["base_digest"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptModel(f"{path} cannot be read: {error}", hint="Train the adapter again.") from error
    if version != ADAPTER_VERSION:
        raise CorruptModel(
            f"the adapter {folder} is of version {version}; this personae reads version {ADAPTER_VERSION}.",
            hint="Use the version of personae that wrote it, or train it again.",
        )
    # The base of a shipped one is held to its package's checksum; its digest names the version of transformers too.
    if made_for != base_digest and not shipped:
        raise InvalidSettings(
            f"the adapter {folder} was made for '{base}', whose weights are not those of '{name.rsplit('+', 1)[0]}'.",
            hint=f"Use it as {base}+{folder}.",
        )
    for file, digest in files.items():
        if not (folder / file).is_file() or hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
            raise CorruptModel(
                f"the adapter {folder} is damaged: {file} does not match its checksum.",
                hint=again,
            )
