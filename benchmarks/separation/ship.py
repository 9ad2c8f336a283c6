"""Make the sharpened scorer that comes with the package from a finished run of `personae sharpen`.

Its adapter is rounded to bfloat16, which halves the file.

    personae sharpen smollm2 --steps 140 --dtype bfloat16 --out runs/sharp
    python -m benchmarks.separation.ship runs/sharp --name smollm2-sharp
    python -m benchmarks.reference.run --model smollm2-sharp
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from personae.models.catalogue import ADAPTER, ADAPTER_CONFIG, MANIFEST, SCORERS, SHARPENED
from personae.models.hf_adapter import WEIGHTS, write_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="smollm2-sharp", choices=sorted(SCORERS))
    args = parser.parse_args()
    adapter, scorer = args.run / ADAPTER, SCORERS[args.name]
    note = json.loads((adapter / MANIFEST).read_text())
    if note["base"] != scorer.base:
        parser.error(f"{args.run} was made of {note['base']}, and {scorer.name} is {scorer.base}")
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in load_file(adapter / WEIGHTS).items()}

    def fill(made: Path) -> None:
        config = json.loads((adapter / ADAPTER_CONFIG).read_text())
        config["target_modules"] = sorted(config["target_modules"])
        (made / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        (made / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))

    write_folder(scorer.folder, fill, {"source": SHARPENED, "base": scorer.base, "base_digest": note["base_digest"]})
    print(scorer.folder.relative_to(Path.cwd()))


if __name__ == "__main__":
    main()
