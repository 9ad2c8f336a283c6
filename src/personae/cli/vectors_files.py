"""`personae vectors show | compare | export | import`: files of vectors, ours and those of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from personae.cli import options as opt
from personae.cli.vectors_extract import N_TEST, N_TRAINING, asked_in, texts_for
from personae.cli.workbench import open_model, say
from personae.models.activations import require_activations
from personae.models.catalogue import DEFAULT_MODEL, home, require_target
from personae.protocols.vector_material import choose_questions
from personae.protocols.vectors import Extractor, ExtractSettings, with_population
from personae.tables.space import PersonaVector
from personae.tables.vector_arithmetic import evaluate

File = Annotated[str, typer.Argument(help="A file of vectors, .safetensors.")]
Expression = Annotated[str, typer.Argument(help="A vector, or a sum such as '2 * malicious - caring'.")]


def show(file: File, as_json: opt.AsJson = False) -> int:
    """List the vectors of a file: what they point to, lengths, and the range of their reference population."""
    from personae.models.hf_vectors import load_vectors

    vectors = load_vectors(Path(file))
    rows = [_row(v) for v in vectors.values()]
    if as_json:
        typer.echo(json.dumps({"command": "vectors show", "file": file, "vectors": rows}))
        return 0
    for row, v in zip(rows, vectors.values(), strict=True):
        best = v.best_layer if v.best_layer >= 0 else v.layers[len(v.layers) // 2]
        spread = "" if v.quantiles is None else f"; population {v.quantile(best, 0):.3g} to {v.quantile(best, 100):.3g}"
        typer.echo(
            f"{v.id:<24} layers {v.layers[0]} to {v.layers[-1]}, layer {best}: length "
            f"{np.linalg.norm(v.at(best)) / v.norm(best):.3f} residual norms{spread}; towards {row['positive']}"
        )
    return 0


def compare(
    file: File,
    first: Expression,
    second: Expression,
    against: Annotated[str | None, typer.Option(help="Another file, for the second vector.")] = None,
    as_json: opt.AsJson = False,
) -> int:
    """Cosines of two vectors, layer by layer, with what random vectors of that width would give."""
    from personae.models.hf_vectors import load_vectors

    vectors = load_vectors(Path(file))
    a = evaluate(first, vectors)
    b = evaluate(second, vectors if against is None else load_vectors(Path(against)))
    found = a.cosines(b)
    # Two isotropic directions: cosine has a standard deviation of 1 / sqrt(width).
    chance = 1.96 / np.sqrt(a.origin.d_model)
    if as_json:
        rows = [{"layer": layer, "cosine": c} for layer, c in found.items()]
        typer.echo(json.dumps({"command": "vectors compare", "cosines": rows, "isotropic_95": chance}))
        return 0
    for layer, value in found.items():
        typer.echo(f"layer {layer:>3}  {value:+.3f}")
    typer.echo(f"\nUnrelated isotropic directions stay within ±{chance:.3f} at one layer (95 %).")
    return 0


def export(
    file: File,
    vector: Expression,
    out: Annotated[str, typer.Option("--out", help="The .gguf file to write.")],
    scale: Annotated[float, typer.Option(help="Factor on the vector.")] = 1.0,
    as_json: opt.AsJson = False,
) -> int:
    """Write a control vector that llama.cpp and repeng read."""
    from personae.models.hf_vectors import export_gguf, load_vectors

    chosen = evaluate(vector, load_vectors(Path(file)))
    layers = export_gguf(Path(out), chosen, scale=scale)
    left = [layer for layer in chosen.layers if layer not in layers]
    if as_json:
        typer.echo(json.dumps({"command": "vectors export", "file": out, "layers": list(layers), "left_out": left}))
    else:
        typer.echo(out)
        if left:
            say(f"note: layer {left[0]} was left out, since llama.cpp cannot edit it.", quiet=False)
    return 0


def bring(
    file: Annotated[str, typer.Argument(help="A .gguf control vector, or a .pt of persona-vectors or assistant-axis.")],
    name: Annotated[str, typer.Option(help="What to call it.")],
    model: opt.Model = DEFAULT_MODEL,
    out: Annotated[str | None, typer.Option("--out", help="The .safetensors file to write. Default: NAME.")] = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Read another tool's vector for a model, measure its unit there, and keep it for --steer and --cap."""
    from personae.models.hf_vectors import import_vector, library_path, save_vectors

    require_target(model)
    say(f"Loading {model} …", quiet=quiet or as_json)
    bench = open_model(model, device=device, dtype=dtype)
    editable = require_activations(bench.model)
    tokenizer = bench.model.tokenizer
    questions = choose_questions(
        texts_for(tokenizer, asked_in(None)), tokenizer, n_training=N_TRAINING, n_test=N_TEST, seed=seed
    )
    population = Extractor(editable, bench.renderer, None, ExtractSettings(seed=seed)).population(questions)
    vector = import_vector(Path(file), population.origin, population.norms, name=name)
    vector = with_population(vector, population)
    path = save_vectors(Path(out or f"{name}.safetensors"), {name: vector})
    kept = save_vectors(library_path(home(), bench.model.card), {name: vector}, keep=True)
    if as_json:
        row = _row(vector) | {"command": "vectors import", "file": str(path), "kept": str(kept)}
        typer.echo(json.dumps(row))
    else:
        typer.echo(f"{path}: layers {vector.layers[0]} to {vector.layers[-1]} of {vector.origin.model}")
    return 0


def _row(v: PersonaVector) -> dict[str, object]:
    return {
        "id": v.id,
        "positive": v.positive,
        "recipe": v.recipe,
        "model": v.origin.model,
        "layers": list(v.layers),
        "best_layer": v.best_layer,
        "length_in_norms": [float(np.linalg.norm(x) / n) for x, n in zip(v.values, v.norms, strict=True)],
    }
