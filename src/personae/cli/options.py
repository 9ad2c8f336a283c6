"""Options that several commands share, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

Data = Annotated[str, typer.Argument(help="Episodes: .jsonl, .jsonl.gz, .json, .csv, .parquet or a datasets folder.")]
Model = Annotated[str, typer.Option("--model", "--scorer", help="Model that scores: see `personae models`.")]
CastNames = Annotated[
    list[str] | None, typer.Option("--cast", help="Built-in cast, YAML file or folder; repeat to join. Default: core.")
]
Only = Annotated[
    str | None, typer.Option("--only", help="Comma-separated traits and roles of the cast to use, no others.")
]
Paraphrases = Annotated[
    int | None,
    typer.Option(min=1, help="Instructions used of each persona. Default: all, or 1 for casts above 60 instructions."),
]
Out = Annotated[str | None, typer.Option("--out", help="Run folder. Default: runs/<command>-<time>.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read at most this many rows.")]
Turns = Annotated[str, typer.Option(help="Score the 'last' assistant turn of a conversation, or 'all' of them.")]
Reading = Annotated[
    str,
    typer.Option(
        help="Read evidence from the 'reply' (what a persona would say), the 'description' (who would say it), or "
        "'both': separates short statements better, at two to three times the cost."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no findings; errors only.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Eta = Annotated[
    float | None, typer.Option(help="Power on the likelihood in the posterior. Default: as calibrated, else 0.25.")
]
Pilot = Annotated[
    bool,
    typer.Option(
        "--pilot", help="Train the first tenth of the run and measure it, for the forecasters 'pilot', 'em_flow_pilot'."
    ),
]
Forecaster = Annotated[
    str,
    typer.Option(
        help="Forecast a training: a forecaster's name, 'none', or 'auto': the best one, where past runs of your own "
        "give it a scale. The best one trains on a part of the file."
    ),
]
Target = Annotated[
    str | None,
    typer.Option(help="Screen this model's own answers to the file's prompts: a server (text is enough) or a model."),
]
Thorough = Annotated[
    bool,
    typer.Option(
        "--thorough",
        help="Ask the cast core's 24 further test items a trait too: narrower intervals, two to four times the work.",
    ),
]
Dtype = Annotated[str, typer.Option(help="float32 (default), bfloat16 or float16; evidence wants float32.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut replies that exceed the model's context.")]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Go on without rows that cannot be read; they are counted.")
]
Steer = Annotated[
    list[str] | None,
    typer.Option(
        "--steer", help="Steer the model: 'contemptuous:-1.5@12-18' (residual norms, 0-based layers); repeatable."
    ),
]
Cap = Annotated[
    list[str] | None,
    typer.Option("--cap", help="Floor a projection: 'assistant_axis:p25' or 'NAME:NUMBER@LAYERS'; repeatable."),
]
Vectors = Annotated[
    list[str] | None,
    typer.Option("--vectors", help="Vector files for --steer and --cap. Default: those extracted from the model."),
]
ExecutorName = Annotated[str, typer.Option("--executor", help="Where the work is done: serial, processes or ray.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", help="Workers, each with the model; for a server, requests at once. Default: one a core."
    ),
]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster: auto or HOST:PORT. Default: one started here.")
]
GpusPerWorker = Annotated[
    float, typer.Option("--gpus-per-worker", help="GPUs that Ray reserves for each worker; may be a fraction.")
]
TokenizerName = Annotated[
    str | None, typer.Option("--tokenizer", help="Tokenizer of a server's model: a folder, a hub id or a model's name.")
]
