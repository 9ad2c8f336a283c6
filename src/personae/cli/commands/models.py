"""`personae models`: which models can be named and which are here."""

from __future__ import annotations

import importlib.util
import json

import typer

from personae.cli import options as opt
from personae.models.catalogue import DEFAULT_MODEL, EMBEDDED, SCORERS, home
from personae.worlds.folder import made_worlds
from personae.worlds.reading import shipped_worlds

NAME = "models"


def command(as_json: opt.AsJson = False) -> int:
    """List the models that can be used and whether they are present."""
    rows = [
        {
            "name": m.name,
            "present": m.files() is not None,
            "default": m.name == DEFAULT_MODEL,
            "description": m.description,
            "licence": m.licence,
            "install": m.install,
        }
        for m in EMBEDDED.values()
    ]
    for scorer in SCORERS.values():
        base = next(row for row in rows if row["name"] == scorer.base)
        rows.append({**base, "name": scorer.name, "default": False, "description": scorer.description})
    worlds = sorted({*shipped_worlds(), *made_worlds(home())})
    backend = all(importlib.util.find_spec(p) is not None for p in ("torch", "transformers", "peft"))
    if as_json:
        typer.echo(
            json.dumps({"command": NAME, "models": rows, "worlds": worlds, "backend": backend, "home": str(home())})
        )
        return 0
    for row in rows:
        typer.echo(
            f"{row['name']:<15}{'here' if row['present'] else 'absent':<8}{row['description']} ({row['licence']})"
        )
        if not row["present"]:
            typer.echo(f"{'':<20}{row['install']}")
    typer.echo("FOLDER         a Hugging Face folder (safetensors)")
    typer.echo("FILE.gguf      a GGUF file, converted once")
    typer.echo("owner/name     a model of the Hugging Face hub")
    typer.echo("http://HOST:PORT/v1#NAME  a model of an OpenAI-compatible server")
    typer.echo("vllm:NAME      one of the above that has files, run by vLLM in this process")
    typer.echo(f"world:NAME     a world with a known answer ({', '.join(worlds)}); `personae world list`")
    typer.echo("NAME+PATH      one of them with an adapter: of `personae train` or `sharpen`, or one that peft wrote")
    typer.echo(f"\nKept under {home()} (PERSONAE_HOME changes it).")
    if not backend:
        typer.echo("torch, transformers or peft is not installed: pip install 'personae[hf]'")
    return 0
