"""`personae vectors features`: latents of a sparse autoencoder that move between two checkpoints, and their texts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli import options as opt
from personae.cli.workbench import open_model, say
from personae.files.episodes import read_episodes
from personae.files.reference import reference_path
from personae.inference.features import FeatureMoves, compare_latents
from personae.models.activations import require_activations
from personae.models.catalogue import require_target
from personae.models.protocol import ModelCard
from personae.models.sae import WEIGHTS, open_sae
from personae.protocols.features import Lit, TextLatents, lit_by, read_latents
from personae.report.text import clean
from personae.running.progress import progress_bar
from personae.running.run import file_digest, make_run_folder, provenance, write_json, write_table

NAME = "vectors features"


def features(
    before: Annotated[str, typer.Argument(help="A checkpoint; the one that the autoencoder was trained on, best.")],
    after: Annotated[str, typer.Argument(help="A later one of the same model.")],
    sae: Annotated[str, typer.Option("--sae", help="Folder of an autoencoder, as sae-lens writes it.")],
    texts: Annotated[
        str | None, typer.Option(help="Replies that are read; a 'group' says which belong together. Default: built in.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Latents whose texts are shown.")] = 10,
    limit: opt.Limit = None,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Find the latents of a sparse autoencoder that move between two checkpoints, and the texts that light them up."""
    autoencoder = open_sae(sae)
    path = texts or str(reference_path())
    episodes = read_episodes(path, limit=limit).require_clean().episodes
    for name in (before, after):
        require_target(name)
    folder = make_run_folder(out, NAME.replace(" ", "-"))
    read: list[TextLatents] = []
    cards: list[ModelCard] = []
    lit: dict[int, tuple[Lit, ...]] = {}
    found: FeatureMoves | None = None
    for name in (before, after):
        say(f"Loading {name} …", quiet=quiet)
        bench = open_model(name, device=device, dtype=dtype)
        model = require_activations(bench.model)
        autoencoder.card.require_fit(model.n_layers, model.d_model, name)
        with progress_bar("Reading", len(episodes), quiet=quiet, unit="texts") as done:
            read.append(read_latents(model, bench.renderer, autoencoder, episodes, advance=done))
        cards.append(bench.model.card)
        if len(read) == 2:
            found = compare_latents(
                read[0].reading,
                read[1].reading,
                autoencoder.decoder,
                [e.group for e in episodes],
                rng=np.random.default_rng([seed, 71]),
            )
            chosen = [m.latent for m in found.moves[:top]]
            lit = {j: lit_by(read[1], bench.renderer, bench.model.tokenizer, episodes, j) for j in chosen}
    assert found is not None
    summary = {
        "command": NAME,
        "before": before,
        "after": after,
        "sae": asdict(autoencoder.card),
        "n_texts": len(episodes),
        "n_topics": found.n_topics,
        "n_live": found.n_live,
        "identical": found.identical,
        "flips_high": found.flips_high,
        "random_high": found.random_high,
        "explained": found.explained,
        "moved": sum(m.p <= 0.05 for m in found.moves),
        "latents": [
            asdict(m) | {"texts": [asdict(t) for t in lit.get(m.latent, ())]} for m in found.moves[: max(top, 1)]
        ],
        "run": str(folder),
    }
    names = ("latent", "before", "after", "size", "t", "p", "cosine", "cosine_p")
    write_table(
        folder / "latents.parquet",
        {n: np.array([getattr(m, n) for m in found.moves], "i8" if n == "latent" else "f8") for n in names},
        {"unit": "mean activation over the tokens of a text, mean over texts; size in units of the stream"},
    )
    record = provenance([path], seed=seed) | {
        "model_cards": [c.to_dict() for c in cards],
        "sae_digest": file_digest(Path(sae) / WEIGHTS),
    }
    settings = {"before": before, "after": after, "sae": sae, "texts": texts, "top": top, "limit": limit, "seed": seed}
    write_json(folder / "run.json", {"command": NAME, "settings": settings, **record, "result": summary})
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not quiet:
        _print(found, lit, before, after, top)
    return 0


def _print(found: FeatureMoves, lit: dict[int, tuple[Lit, ...]], before: str, after: str, top: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if found.identical:
        console.print(Text(f"{clean(before)} and {clean(after)} are identical on these texts: no latent moved."))
        return
    moved = sum(m.p <= 0.05 for m in found.moves)
    console.print(
        Text(f"{moved} of {found.n_live} live latents moved (p at most 0.05 for all together).", style="bold")
    )
    table = Table(box=None, pad_edge=False)
    for column in ("latent", "before", "after", "size", "t", "p", "cosine", "p", "most active in"):
        table.add_column(column, justify="left" if column == "most active in" else "right", no_wrap=True)
    for m in found.moves[:top]:
        first = lit[m.latent][0] if lit.get(m.latent) else None
        shown = "" if first is None else f"{first.episode}: …{first.before[-20:]}[{first.token}]{first.after[:20]}…"
        table.add_row(
            str(m.latent), f"{m.before:.3g}", f"{m.after:.3g}", f"{m.size:.3g}", f"{m.t:+.1f}", f"{m.p:.3g}",
            f"{m.cosine:+.2f}", f"{m.cosine_p:.2g}", Text(" ".join(clean(shown).split())),
        )  # fmt: skip
    console.print(table)
    console.print(
        Text(
            f"size: what a latent adds to the mean change, in units of the stream. t over {found.n_topics} topics, "
            f"beside {found.flips_high:.1f} that the largest of all latents reaches when checkpoints change places. "
            f"cosine of its decoder row with the change, beside {found.random_high:.2f} of as many random directions. "
            f"Latents explain {found.explained:.0%} of the mean change.",
            style="dim",
        )
    )
