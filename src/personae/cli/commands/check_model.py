"""`personae check-model`: run the laws on a model and print the worst gap of each."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from personae.cli import options as opt
from personae.cli.workbench import say
from personae.errors import BackendError
from personae.models.laws import check_laws
from personae.models.load import load_model

NAME = "check-model"


def command(
    model: Annotated[str, typer.Argument(help="Model: see `personae models`.")],
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    tokenizer: opt.TokenizerName = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Check that a model's scores can be believed: batch, prefix, history, chain rule and more."""
    say(f"Loading {model} …", quiet=quiet or as_json)
    loaded = load_model(model, device=device, dtype=dtype, tokenizer=tokenizer)
    verdicts = check_laws(loaded)
    failed = [v.law for v in verdicts if not v.holds]
    if as_json:
        rows = [asdict(v) for v in verdicts]
        typer.echo(json.dumps({"command": NAME, "model": loaded.card.to_dict(), "laws": rows, "failed": failed}))
    elif not quiet:
        card = loaded.card
        typer.echo(
            f"{card.name}: {card.n_parameters:,} parameters, {card.dtype} on {card.device}, {card.kernel} kernel"
        )
        if card.note:
            typer.echo(f"{card.note}; noise floor {card.noise_floor or 0.0:.2g} nats a completion")
        for v in verdicts:
            typer.echo(
                f"{'holds ' if v.holds else 'BROKEN'}  {v.law:<16} gap {v.gap:.2g} (at most {v.tolerance:g})  {v.note}"
            )
    if failed:
        raise BackendError(
            f"'{model}' breaks {len(failed)} laws: {', '.join(failed)}.",
            hint="Its scores depend on how they are asked for; do not compare personas with them.",
        )
    return 0
