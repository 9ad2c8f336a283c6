"""A real model under one role's instruction, and a 70/30 mix of two: is the role first, is the mix recovered?

    python -m benchmarks.profile.roles --roles pirate knight [--limit 20] [--max-tokens 16]

The target speaks under the last paraphrase of a role; the scorer reads the others. A mix takes 70% of the prompts'
replies from one role's transcripts and the rest from the next one's, interleaved over topics. Everything said and
scored is kept, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.environment import write_result
from personae.cli.commands.profile import Settings, execute
from personae.files.casts import load_casts

CAST = "chef,pirate,wizard,knight,scientist,rogue_ai"
SHARE = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--roles", nargs="+", default=["pirate", "knight"])
    parser.add_argument("--cast", default=CAST, help="roles that compete")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--etas", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--out", type=Path, default=Path("runs/profile-roles"))
    args = parser.parse_args()
    roles = {r.id: r for r in load_casts(["core"]).roles}
    single, mixes = {}, {}
    for role in args.roles:
        for eta in args.etas:
            found = run(args, args.model, f"{role}-{eta:g}", eta, system=roles[role].instructions[-1])
            single[f"{role}, eta {eta:g}"] = shares(found) | {"role_first": leader(found) == role}
    for first, second in zip(args.roles, args.roles[1:], strict=False):
        said = mix(args.out / f"{first}-{args.etas[0]:g}", args.out / f"{second}-{args.etas[0]:g}", args.out)
        for eta in args.etas:
            found = run(args, str(said), f"mix-{first}-{second}-{eta:g}", eta, scorer=args.model)
            weight = {p["persona"]: p["weight"] for p in found["posterior"]}
            error = max(abs(weight[first] - SHARE), abs(weight[second] - (1 - SHARE)))
            among = weight[first] / (weight[first] + weight[second])
            mixes[f"{first} and {second}, eta {eta:g}"] = shares(found) | {
                "largest_error": error,
                "among_the_two": among,
            }
    body = {"model": args.model, "limit": args.limit, "max_tokens": args.max_tokens, "single": single, "mixes": mixes}
    print(json.dumps(body, indent=1))
    print(write_result(f"profile-roles-{args.model}", body))


def run(args: argparse.Namespace, target: str, name: str, eta: float, *, system: str = "", scorer: str = "") -> dict:
    """One profile; gives what `--json` would print."""
    folder = args.out / name
    execute(
        Settings(
            target=target,
            scorer=scorer or None,
            only=args.cast,
            paraphrases=2,
            system=system,
            limit=None if scorer else args.limit,
            max_tokens=args.max_tokens,
            eta=eta,
            out=str(folder),
            quiet=True,
        )
    )
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["result"]


def shares(found: dict) -> dict[str, object]:
    rows = {p["persona"]: [round(v, 3) for v in (p["weight"], *p["ci"])] for p in found["posterior"]}
    white = found["white_box"]
    first = {p["persona"]: round(p["weight"], 3) for p in white["posterior"]} if white else None
    return {"weights": rows, "first_words": first, "topics_p": found["topics"]["p"]}


def leader(found: dict) -> str:
    return found["posterior"][0]["persona"]


def mix(first: Path, second: Path, out: Path) -> Path:
    """A file of transcripts: of ten prompts in a row seven are answered by the first and three by the second."""
    rows = []
    for folder, wanted in ((first, lambda k: k % 10 not in (2, 5, 8)), (second, lambda k: k % 10 in (2, 5, 8))):
        lines = (folder / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
        rows += [line for k, line in enumerate(lines) if wanted(k)]
    path = out / f"mix-{first.name}-{second.name}.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
