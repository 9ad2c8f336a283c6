"""The log of an audit on disk: one Parquet file a table and `log.json`, from which the result is made again."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from personae.errors import InputError
from personae.protocols.audit import AuditLog
from personae.running.run import write_json, write_table

_TABLES = tuple(f.name for f in fields(AuditLog) if f.name != "facts")
_NOTES = {
    "tokens": "one row a token of the conversations; kl: KL from post to each rung, nats",
    "texts": "the same for texts out of chat",
    "replies": "distinct replies to single prompts, of the model and the controls; nats",
    "flips": "one row a throw of the coin",
    "knowledge": "one row a question with possible answers; nats",
    "breaks": "one row a conversation, with its largest sum of log-likelihood ratios",
    "said": "one row a conversation",
}


def save_log(folder: Path, log: AuditLog) -> None:
    """Write every table that has rows.

    Raises:
        StorageError: If the folder cannot be written.
    """
    for name in _TABLES:
        columns = getattr(log, name)
        if columns:
            write_table(folder / f"{name}.parquet", columns, {"rows": _NOTES[name]})
    write_json(folder / "log.json", {"format": 1, **log.facts})


def load_log(folder: Path) -> AuditLog:
    """Read what `save_log` wrote.

    Raises:
        InputError: If the folder holds no log, or a damaged one.
    """
    hint = "Name the run folder of an audit: it holds log.json and tokens.parquet."
    try:
        facts = json.loads((folder / "log.json").read_text(encoding="utf-8"))
        tables = {
            name: pq.read_table(path).to_pydict() if (path := folder / f"{name}.parquet").is_file() else {}
            for name in _TABLES
        }
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"no readable log of an audit: {error}", path=str(folder), hint=hint) from error
    if not isinstance(facts, dict) or "components" not in facts or not tables["tokens"]:
        raise InputError("the log of an audit is incomplete", path=str(folder), hint=hint)
    return AuditLog(facts, **tables)
