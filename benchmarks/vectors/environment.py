"""Make a throw-away environment with the tools that ours is held against.

    python -m benchmarks.vectors.environment FOLDER        then: --python FOLDER/bin/python

They ask for versions that exclude each other's and ours, so they are installed beside personae and never with it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

# torch first: a later step would otherwise draw the build for graphics cards.
STEPS = (
    ("torch==2.13.0",),
    ("transformers==5.23.0", "accelerate==1.15.0", "hidden-directions==0.1.6", "saklas==5.3.0", "gguf>=0.17,<0.20"),
    # They ask for NumPy 1 and transformers 4, with which saklas does not run; only their arithmetic is wanted.
    ("--no-deps", "repeng==0.4.0", "steering-vectors==0.12.2"),
)


def main() -> None:
    """Make the environment and install."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    for what in STEPS:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True)
    tools = "import hidden_directions, repeng.extract, saklas, steering_vectors"
    subprocess.run([python, "-c", f"import numpy; numpy.float_ = numpy.float64; {tools}"], check=True)
    print(python)


if __name__ == "__main__":
    main()
