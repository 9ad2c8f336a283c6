"""Evidence on disk, as `personae score` wrote it: read in pieces, checked, and given to inference as arrays.

    evidence.parquet   episode, persona, n_tokens, log_likelihood: one row a pair, episode by episode
    episodes.parquet   episode, line, weight, group, n_tokens: one row an episode

Text columns are read as places in a list and never as a Python object a row, so a million episodes take the memory of
their numbers. Not here: what follows from them (`inference`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from personae.errors import IncomparableEvidence, InputError, NumericsError

_ROWS = 2**18
_AGAIN = "Score again: personae score DATA --out FOLDER"


@dataclass(frozen=True, slots=True, eq=False)
class StoredEvidence:
    """Log-likelihoods of every episode and component.

    Attributes:
        personas: Components, in the order of the columns.
        log_likelihood: Shape (n_episodes, n_personas), nats, float64; -inf is legal.
        weight, n_tokens: Of every episode.
        group: Place of every episode's conversation, from 0 in order of first appearance.
    """

    personas: tuple[str, ...]
    log_likelihood: NDArray[np.float64]
    weight: NDArray[np.float64]
    n_tokens: NDArray[np.int64]
    group: NDArray[np.int64]

    @property
    def n_groups(self) -> int:
        """Number of conversations."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    def sums(self) -> NDArray[np.float64]:
        """Weighted sums over conversations that count, nats, shape (n_used_groups, n_personas)."""
        used = self.weight != 0
        sums = np.zeros((self.n_groups, len(self.personas)))
        np.add.at(sums, self.group[used], self.log_likelihood[used] * self.weight[used, None])
        return sums[np.unique(self.group[used])]


def read_evidence(folder: Path) -> StoredEvidence:
    """Read a run folder's tables.

    Raises:
        InputError: If a table is missing or is none.
        IncomparableEvidence: If the tables do not belong together, or pairs are missing, doubled or in disorder.
        NumericsError: If a log-likelihood is not a number.
    """
    about = _table(folder / "episodes.parquet", ("episode", "weight", "group", "n_tokens"))
    n = about.num_rows
    group = about.column("group").combine_chunks().dictionary_encode().indices.to_numpy()
    path = folder / "evidence.parquet"
    personas, values = _matrix(path, about.column("episode"), n)
    if np.isnan(values).any():
        raise NumericsError(f"{path} holds a log-likelihood that is not a number.", hint=_AGAIN)
    return StoredEvidence(
        personas,
        values,
        about.column("weight").to_numpy().astype(np.float64),
        about.column("n_tokens").to_numpy().astype(np.int64),
        group.astype(np.int64),
    )


def _table(path: Path, columns: tuple[str, ...]) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns), memory_map=True)
    except FileNotFoundError as error:
        raise InputError("there is no such table", path=str(path), hint="Name the folder of a `score` run.") from error
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(f"not a table of `personae score`: {error}", path=str(path), hint=_AGAIN) from error


def _matrix(path: Path, episodes: pa.ChunkedArray, n: int) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Components and log-likelihoods, each piece checked against the order that `score` writes."""
    personas: tuple[str, ...] = ()
    values = np.zeros((n, 0))
    row = 0
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            total = file.metadata.num_rows
            for batch in file.iter_batches(_ROWS, columns=["episode", "persona", "log_likelihood"]):
                if not personas:
                    personas = _components(batch.column("persona"))
                    if total != n * len(personas):
                        raise IncomparableEvidence(
                            f"{path} holds {total} rows where {n} episodes and {len(personas)} personas make "
                            f"{n * len(personas)}.",
                            hint=_AGAIN,
                        )
                    values = np.empty((n, len(personas)))
                _check_order(path, batch, personas, episodes, row)
                values.reshape(-1)[row : row + len(batch)] = batch.column("log_likelihood").to_numpy()
                row += len(batch)
    except FileNotFoundError as error:
        raise InputError("there is no such table", path=str(path), hint="Name the folder of a `score` run.") from error
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(f"not a table of `personae score`: {error}", path=str(path), hint=_AGAIN) from error
    return personas, values


def _components(column: pa.Array) -> tuple[str, ...]:
    return tuple(str(p) for p in column.unique().to_pylist())


def _check_order(
    path: Path, batch: pa.RecordBatch, personas: tuple[str, ...], episodes: pa.ChunkedArray, row: int
) -> None:
    k = len(personas)
    places = np.arange(row, row + len(batch))
    first, last = places[0] // k, places[-1] // k + 1
    told = episodes.slice(first, last - first).combine_chunks()
    wanted = told.take(pa.array(places // k - first))
    whose = pa.array(personas).take(pa.array(places % k))
    if not (batch.column("episode").equals(wanted) and batch.column("persona").equals(whose)):
        raise IncomparableEvidence(
            f"{path}: the rows from {row} on are not those of episodes.parquet, episode by episode.", hint=_AGAIN
        )
