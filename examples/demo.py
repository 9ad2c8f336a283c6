"""The demo: screen a support-desk file in which every fifth reply looks down on the customer.

A part of the built-in cast and one paraphrase, so that it ends in minutes on two cores; the second run is
answered from the store.
"""

import sys
from pathlib import Path

from personae.cli.main import run

HERE = Path(__file__).parent
TRAITS = "contemptuous,sycophantic,caring,reckless,servile,verbose"
ROLES = "customer_service_bot,teacher,pirate,helpful_assistant"

if __name__ == "__main__":
    print("Screening", HERE / "support_desk.jsonl", flush=True)
    options = ["--only", f"{TRAITS},{ROLES}", "--paraphrases", "1", "--limit", "100"]
    sys.exit(run(["screen", str(HERE / "support_desk.jsonl"), *options]))
