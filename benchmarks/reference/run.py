"""Score the reference population for the embedded default model and ship the result with the package.

Writes src/personae/reference/<model>.parquet: frame and episode digests, token counts, nats. Run it again
after any change to the cast, the reference, the rendering or the weights; a test recomputes a sample.

    python -m benchmarks.reference.run [--paraphrases 1] [--only trait,trait]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from personae.cli.workbench import Workbench, announced, open_model
from personae.domain.persona import Cast
from personae.files.casts import load_casts
from personae.files.reference import load_reference, reference_path
from personae.instruments.scoring import cast_frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--paraphrases", type=int, default=1)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    core = load_casts(["core"])
    traits = [t for t in core.traits if not args.only or t.id in args.only.split(",")]
    cast = Cast("core", tuple(traits)).limit_paraphrases(args.paraphrases)
    bench = open_model(args.model)
    with announced("Reference", quiet=False) as started:
        bench.scoring.evidence(cast, load_reference(), started=started)
    write(bench, args.model)


def write(bench: Workbench, name: str) -> None:
    """Ship every row the store holds of the whole core cast on the reference, sorted so that files compare."""
    frames = [f.digest for f in cast_frames(load_casts(["core"]), bench.renderer)]
    rows = bench.store.load(frames, [e.content_digest for e in load_reference()])
    f, e = np.nonzero(~rows.missing)
    by_frame, by_episode = list(rows.frames), list(rows.episodes)
    table = pa.table(
        {
            "frame": pa.array([by_frame[i] for i in f], pa.binary(16)),
            "episode": pa.array([by_episode[i] for i in e], pa.binary(16)),
            "n_tokens": pa.array(rows.n_tokens[f, e], pa.int32()),
            "log_likelihood": pa.array(rows.log_likelihood[f, e], pa.float64()),
        }
    ).sort_by([("frame", "ascending"), ("episode", "ascending")])
    path = Path(reference_path()).parent / f"{name}.parquet"
    pq.write_table(table.replace_schema_metadata({"personae_space": bench.space}), path, compression="zstd")
    print(path, len(table), "rows", len(set(f.tolist())), "frames")


if __name__ == "__main__":
    main()
