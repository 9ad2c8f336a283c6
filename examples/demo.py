"""The demo: screen forty replies, twelve of which grovel before the user.

A part of the built-in cast and one paraphrase, so that it ends in a minute or two on two cores; the second run is
answered from the store. What follows on the command line is passed on: `--executor ray --workers 2` is the same on a
local cluster.
"""

import sys
from pathlib import Path

from personae.cli.main import run

HERE = Path(__file__).parent
TRAITS = "servile,contemptuous,sycophantic,caring,reckless,verbose"
ROLES = "customer_service_bot,robot_butler,teacher,pirate,helpful_assistant"

if __name__ == "__main__":
    print("Screening", HERE / "eager_assistant.jsonl", flush=True)
    options = ["--only", f"{TRAITS},{ROLES}", "--paraphrases", "1"]
    sys.exit(run(["screen", str(HERE / "eager_assistant.jsonl"), *options, *sys.argv[1:]]))
