"""Files of persona vectors: our own (safetensors), and those of other tools, read and written without running them.

    FILE.safetensors   tensors values/ID (n_layers, d_model), norms/ID (n_layers,), quantiles/ID (n_layers, 101);
                       what they mean is in the header, under "personae"
    FILE.gguf          llama.cpp and repeng control vector: direction.L is added after block L (0-based), L at least 1
    FILE.pt            persona-vectors: (n_layers + 1, d_model) with the embedding first and the last row taken after
                       the final norm, which is no place of the residual stream; assistant-axis: (n_layers, d_model),
                       alone or under "axis" or "vector"

`.pt` files are pickles: they are read with `weights_only=True`, which builds tensors and refuses everything else.
Not here: which vectors are worth keeping.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from personae.errors import InputError, InvalidSettings, StorageError
from personae.models.protocol import ModelCard
from personae.tables.activations import Floats32, Origin
from personae.tables.space import PersonaVector

FORMAT = 1
_KEY = "personae"


def library_path(home: Path, card: ModelCard) -> Path:
    """Where vectors of a model are kept between runs."""
    return home / "vectors" / f"{card.digest}.safetensors"


def save_vectors(path: Path, vectors: Mapping[str, PersonaVector], *, keep: bool = False) -> Path:
    """Write vectors of one model, whole or not at all.

    Args:
        path: A `.safetensors` file.
        vectors: By id.
        keep: Whether vectors of other ids in the file stay.

    Raises:
        StorageError: If it cannot be written.
        InputError: If `keep` is asked and the file there is no vector file.
    """
    every = dict(load_vectors(path)) if keep and path.is_file() else {}
    every |= dict(vectors)
    tensors: dict[str, np.ndarray] = {}
    about: dict[str, object] = {}
    for name, v in every.items():
        tensors[f"values/{name}"] = np.ascontiguousarray(v.values)
        tensors[f"norms/{name}"] = np.ascontiguousarray(v.norms)
        if v.quantiles is not None:
            tensors[f"quantiles/{name}"] = np.ascontiguousarray(v.quantiles)
        about[name] = {
            "layers": list(v.layers),
            "positive": v.positive,
            "recipe": v.recipe,
            "best_layer": v.best_layer,
            "origin": v.origin.to_dict(),
        }
    header = {_KEY: json.dumps({"format": FORMAT, "vectors": about}, ensure_ascii=False)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
            made = Path(folder) / "made"
            save_file(tensors, made, metadata=header)
            os.replace(made, path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    return path


def load_vectors(path: Path) -> dict[str, PersonaVector]:
    """Read a `.safetensors` file of vectors.

    Raises:
        InputError: If there is none or it holds no vectors.
    """
    if not path.is_file():
        raise InputError("there is no such file", path=str(path), hint="`personae vectors extract` makes one.")
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[_KEY])["vectors"]
            names = set(file.keys())
            made: dict[str, PersonaVector] = {}
            for name, note in about.items():
                quantiles = f"quantiles/{name}"
                made[name] = PersonaVector(
                    name,
                    tuple(int(layer) for layer in note["layers"]),
                    np.asarray(file.get_tensor(f"values/{name}"), np.float32),
                    np.asarray(file.get_tensor(f"norms/{name}"), np.float32),
                    str(note["positive"]),
                    str(note["recipe"]),
                    Origin(**note["origin"]),
                    int(note["best_layer"]),
                    np.asarray(file.get_tensor(quantiles), np.float32) if quantiles in names else None,
                )
            return made
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, InvalidSettings) as error:
        raise InputError(
            f"this is no file of persona vectors: {error}",
            path=str(path),
            hint="`personae vectors import` reads files of other tools.",
        ) from error


def export_gguf(path: Path, vector: PersonaVector, *, scale: float = 1.0) -> tuple[int, ...]:
    """Write a control vector for llama.cpp; give the layers it holds.

    llama.cpp adds direction.L to the output of block L and cannot edit block 0, which is left out.

    Raises:
        InvalidSettings: If no layer is left, or the scale is not finite.
        StorageError: If it cannot be written.
    """
    layers = tuple(layer for layer in vector.layers if layer > 0)
    if not layers or not np.isfinite(scale):
        raise InvalidSettings(
            f"the vector '{vector.id}' has no layer that llama.cpp can edit." if not layers else f"a scale of {scale}.",
            hint="llama.cpp edits blocks 1 and above; give a finite --scale.",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(str(path), "controlvector")
        writer.add_string("controlvector.model_hint", vector.origin.model)
        writer.add_uint32("controlvector.layer_count", len(layers))
        writer.add_string("personae.positive", vector.positive)
        for layer in layers:
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(vector.at(layer) * np.float32(scale)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.") from error
    return layers


def import_vector(path: Path, origin: Origin, norms: Floats32, *, name: str) -> PersonaVector:
    """Read a vector of another tool for a model.

    Args:
        path: `.gguf` or `.pt`.
        origin: The model it belongs to; the file cannot prove it, only its shape is checked.
        norms: Median length of that model's residual stream at every layer, shape (n_layers,).
        name: What to call it.

    Raises:
        InputError: If it cannot be read, wants to run code, or has another model's shape.
    """
    if not path.is_file():
        raise InputError("there is no such file", path=str(path))
    if path.suffix == ".gguf":
        layers, values, recipe = _from_gguf(path)
    elif path.suffix in (".pt", ".pth", ".bin"):
        layers, values, recipe = _from_pickle(path, origin)
    else:
        raise InputError(f"unknown format '{path.suffix}'", path=str(path), hint="Use .gguf or .pt.")
    if values.ndim != 2 or values.shape[1] != origin.d_model or max(layers, default=0) >= origin.n_layers:
        raise InputError(
            f"it holds {len(layers)} layers (the last is {max(layers, default=-1)}) of width {values.shape[-1]}; "
            f"'{origin.model}' has {origin.n_layers} of width {origin.d_model}.",
            path=str(path),
            hint="It was made from another model: name that one with --model.",
        )
    if not np.isfinite(values).all() or not values.any():
        raise InputError("it is zero everywhere, or holds numbers that are not finite.", path=str(path))
    return PersonaVector(name, layers, values, norms[list(layers)], name, recipe, origin)


def _from_gguf(path: Path) -> tuple[tuple[int, ...], Floats32, str]:
    try:
        reader = gguf.GGUFReader(str(path))
        field = reader.get_field("general.architecture")
        kind = str(field.contents()) if field is not None else "nothing"
        rows = {
            int(t.name.removeprefix("direction.")): np.asarray(t.data, np.float32).ravel()
            for t in reader.tensors
            if t.name.startswith("direction.")
        }
        if kind != "controlvector" or not rows:
            raise ValueError(f"it holds {kind} and not a control vector")
        layers = tuple(sorted(rows))
        return layers, np.stack([rows[layer] for layer in layers]), f"imported from {path.name} (control vector)"
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"it cannot be read as a control vector: {error}", path=str(path)) from error


def _from_pickle(path: Path, origin: Origin) -> tuple[tuple[int, ...], Floats32, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the pickle's protocol: what cannot be read is refused below
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            "it holds something other than tensors, which would be run as code when read: refused.",
            path=str(path),
            hint="Ask its author for a file of tensors only (safetensors, or torch.save of a tensor).",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"it cannot be read: {error}", path=str(path)) from error
    if isinstance(found, Mapping):
        found = next((found[k] for k in ("axis", "vector") if k in found), None)
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        raise InputError(
            "it holds no tensor of layers by width.",
            path=str(path),
            hint="Known: persona-vectors (n_layers + 1, d_model), and assistant-axis (n_layers, d_model).",
        )
    values = found.detach().float().numpy().astype(np.float32)
    if len(values) == origin.n_layers + 1:
        # Row l + 1 of `hidden_states` is the output of block l, but the last has passed the final norm.
        return tuple(range(origin.n_layers - 1)), values[1:-1].copy(), f"imported from {path.name} (persona-vectors)"
    if len(values) != origin.n_layers:
        raise InputError(
            f"it holds {len(values)} layers and '{origin.model}' has {origin.n_layers}.",
            path=str(path),
            hint="It was made from another model: name that one with --model.",
        )
    return tuple(range(origin.n_layers)), values, f"imported from {path.name} (assistant-axis)"


def find_vectors(paths: Sequence[Path]) -> dict[str, PersonaVector]:
    """Vectors of several files; a later file wins.

    Raises:
        InputError: If one cannot be read.
    """
    return {name: v for path in paths for name, v in load_vectors(path).items()}
