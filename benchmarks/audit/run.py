"""What audits and profiles of real models say where something is known of them.

    python -m benchmarks.audit.run role        a model fine-tuned on its own answers in a role, and one on the same
                                               words shuffled: role first, mixture FVE >= 0.7, less background
    python -m benchmarks.audit.run null        the base against itself: audits, and 20 comparisons of two samples of it
    python -m benchmarks.audit.run assistant   a base model before and after a fine-tune on an assistant's replies

Each is resumable (what was said, scored and trained is kept in --folder and PERSONAE_HOME) and writes
benchmarks/results/audit-PART-ROWS.json with date, processor, seeds and versions. A 70/30 mix of two roles is
`benchmarks.audit.mix`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.audit.adapters import BASE_MODEL, MODEL, RATE, adapter_of
from benchmarks.environment import write_result
from personae.cli.audit_files import load_log, save_log
from personae.cli.commands import profile as profile_command
from personae.files.casts import load_casts
from personae.instruments.keeping import Shelf, keep
from personae.models.catalogue import home
from personae.models.load import load_model
from personae.models.soft_prompt import SoftPromptPlan
from personae.protocols.audit import measure
from personae.protocols.audit_conclusions import conclude
from personae.protocols.audit_material import QUICK, built_in_material
from personae.protocols.audit_parties import parties
from personae.report.audit_finding import audit_finding

RIVALS = ("helpful_assistant", "teacher", "wizard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--folder", type=Path, default=Path("runs/audit-benchmark"))
    parser.add_argument("--role", default="pirate")
    parser.add_argument("--rows", type=int, default=96, help="that fine-tunes see")
    parser.add_argument("--wording", choices=("own", "cast"), default="own", help="of the role's instruction")
    parser.add_argument("--asked", choices=("requests", "wide"), default="requests", help="of the role, see adapters")
    parser.add_argument("--learning-rate", type=float, default=RATE["sft"], help="of the role's fine-tune")
    parser.add_argument("--schedule", default="constant")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--kinds", nargs="+", choices=("role", "shuffled"), default=["role", "shuffled"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=12, help="of each comparison of the null")
    parser.add_argument("--soft-prompt", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.time()
    body = PARTS[args.part](args)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "folder"}
    body = {"settings": settings, "seconds": round(time.time() - began, 1), **body}
    print(json.dumps(body, indent=1))
    asked = "" if args.asked == "requests" else f"-{args.asked}"
    suffix = {"null": "", "role": f"-{args.rows}-{args.wording}{asked}"}.get(args.part, f"-{args.rows}")
    print(write_result(f"audit-{args.part}{suffix}", body))


def role(args: argparse.Namespace) -> dict[str, object]:
    """A persona that was selected by training, against training on no persona's words."""
    names = [args.role, *(r for r in RIVALS if r != args.role)]
    found: dict[str, dict] = {}
    for kind in args.kinds:
        target = adapter_of(
            kind,
            args.folder,
            role=args.role,
            seed=args.seed,
            rows=args.rows,
            wording=args.wording,
            rate=args.learning_rate,
            schedule=args.schedule,
            epochs=args.epochs,
            asked=args.asked,
        )
        out = Path(target.split("+", 1)[1]).parent
        found[kind] = {"profile": profiled(target, ",".join(names), out / "profile", args.seed)}
        if kind == "role":
            found[kind]["audit"] = audited(target, MODEL, ",".join(names), out / "audit", args)
    first = found["role"]["profile"]["weights"]
    share = found["role"]["audit"]["rungs"]["R4"]
    background = [found[kind]["profile"]["background"] for kind in args.kinds]
    roles = {name: w for name, w in first.items() if name in names}
    bars = {
        "role_first": max(roles, key=lambda r: roles[r][0]) == args.role,
        "mixture_share": share[0],
        "mixture_share_at_least_0.7": share[0] >= 0.7,
        "background_role_shuffled": background,
        "background_lower_than_shuffled": background[0] < background[1] if len(background) == 2 else None,
    }
    return {"bars": bars, **found}


def null(args: argparse.Namespace) -> dict[str, object]:
    """The base against itself: nothing to explain, and what two samples of it differ in."""
    names = ",".join((args.role, *(r for r in RIVALS if r != args.role)))
    undefined = []
    for seed in (0, 1):
        args.seed = seed
        undefined.append(audited(MODEL, MODEL, names, args.folder / f"itself-{seed}", args)["undefined"])
    comparisons = []
    for seed in range(args.repeats):
        out = args.folder / f"versus-{seed}"
        settings = profile_command.Settings(
            target=MODEL,
            versus=MODEL,
            only=names,
            paraphrases=1,
            limit=args.prompts,
            max_tokens=12,
            out=str(out),
            seed=seed,
            quiet=True,
        )
        profile_command.execute(settings)
        result = json.loads((out / "run.json").read_text(encoding="utf-8"))["result"]
        found = result["versus"]
        least = min(m["q"] for m in found["moves"])
        comparisons.append({"seed": seed, "n_moved": found["n_moved"], "least_q": least})
        print(comparisons[-1], flush=True)
    return {
        "audits_say": undefined,
        "with_a_finding": sum(bool(c["n_moved"]) for c in comparisons),
        "repeats": len(comparisons),
        "comparisons": comparisons,
    }


def assistant(args: argparse.Namespace) -> dict[str, object]:
    """A base model before and after it was taught an assistant's replies."""
    names = "helpful_assistant,customer_service_bot,teacher,pirate"
    target = adapter_of("assistant", args.folder, seed=args.seed, rows=args.rows)
    out = args.folder / f"assistant-{args.rows}" / "audit"
    after = audited(target, BASE_MODEL, names, out, args, ("coin",))
    # Before: the base against itself has no ladder; its own swing is that of the cells marked "base".
    before = {what: swing for what, swing in after["coin"].items() if what.endswith(": base")}
    return {"coin_before": before, "after": after}


def profiled(target: str, only: str, out: Path, seed: int) -> dict:
    """Weights with intervals of a quick profile."""
    if not (out / "run.json").is_file():
        settings = profile_command.Settings(target=target, only=only, quick=True, out=str(out), seed=seed, quiet=True)
        profile_command.execute(settings)
    found = json.loads((out / "run.json").read_text(encoding="utf-8"))["result"]
    return {
        "weights": {p["persona"]: [p["weight"], *p["ci"]] for p in found["posterior"]},
        "background": found["background"],
        "eta": found["eta"],
    }


def audited(
    target: str, base: str, only: str, out: Path, args: argparse.Namespace, protocols: Sequence[str] = ()
) -> dict:
    """The ladder of a quick audit, and other protocols where they are wanted."""
    if not (out / "log.json").is_file():
        cast, shelf = load_casts(["core"]).select(only.split(",")), Shelf(home() / "passes")
        who = parties(keep(load_model(target), shelf), keep(load_model(base), shelf), cast)
        soft = SoftPromptPlan(args.soft_prompt, seed=args.seed) if args.soft_prompt else None
        material = built_in_material(QUICK, seed=args.seed)
        log = measure(
            who, material, QUICK, cast=cast, seed=args.seed, protocols=("ladder", *protocols), soft=soft, shelf=shelf
        )
        log.facts.update(post=target, base=base, cast=only)
        out.mkdir(parents=True, exist_ok=True)
        save_log(out, log)
        shelf.clear()
    found = conclude(load_log(out))
    rows = [*found.rungs, *([found.alone] if found.alone else []), *found.rivals]
    return {
        "finding": audit_finding(found),
        "undefined": found.undefined,
        "kl_per_token": found.kl_per_token,
        "rungs": {r.id: [r.share, r.low, r.high] for r in rows},
        "weights": dict(found.weights),
        "coin": {s.what: [s.probability, s.probability_low, s.probability_high] for s in found.swings},
        "notes": list(found.notes),
    }


PARTS = {"role": role, "null": null, "assistant": assistant}


if __name__ == "__main__":
    main()
