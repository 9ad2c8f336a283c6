"""Twenty-four fine-tunes of a world's model, where the truth is exact: eight personas, each on three domains.

    python -m benchmarks.forecast.world --folder FOLDER [--seeds 0 1 2]

FOLDER holds worlds trained by `python -m benchmarks.worlds.run --folder FOLDER`. A run is supervised training on single
turns of one persona on one domain (no tag, loss on the answer, AdamW 3e-4, batches of 32). Twelve checkpoints are read
on the other domains, for runs of four lengths. Laws of learning are fitted on the first checkpoint and judged on all
twelve; the last checkpoint is also forecast with one rate, taken from the runs of other personas.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import rel_entr
from transformers import GPT2LMHeadModel

from benchmarks.environment import write_result
from personae.inference.flow import Law, em_flow, forecast_run, fraction_explained
from personae.inference.readout import minimise
from personae.worlds.exact import ExactWorld
from personae.worlds.reading import read_world

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

BATCH, RATE = 32, 3e-4
LENGTHS = (48, 96, 144, 192)  # steps of a run; a run's beginning is a shorter run, since the rate is constant
STEPS_READ = tuple(range(4, LENGTHS[-1] + 1, 4))
N_CHECKPOINTS = 12
LAWS: tuple[Law, ...] = ("em_flow", "tempered_bayes")
DOMAINS = (0, 1, 2)
TRAIT = 0  # malice


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """A fine-tune.

    Attributes:
        persona, domain: What it was trained on.
        log_likelihood: Of the examples in their order under each persona, exact, nats, shape (n_rows, n_personas).
        contrast: Mean log-likelihood ratio of the two poles' tags under the model before training, nats a row.
        answers: At step 0 and at `STEPS_READ`, shape (n_read + 1, n_questions, n_answers).
        leaked: Largest probability given to words that are no answers.
        seconds: Of training, one thread.
    """

    persona: int
    domain: int
    log_likelihood: Floats
    contrast: float
    answers: Floats
    leaked: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--world", default="personaworld")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    worlds = []
    for seed in args.seeds:
        exact = ExactWorld(replace(read_world(args.world).base, seed=seed))
        folder = args.folder / f"seed-{seed}" / "worlds" / args.world / "base"
        model = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")
        tuned = [fine_tune(model, exact, k, d, seed) for k in range(exact.world.n_personas) for d in DOMAINS]
        worlds.append({"seed": seed, **judge(exact, tuned)})
        print(seed, worlds[-1]["summary"], flush=True)
    body = {
        "world": args.world,
        "seeds": args.seeds,
        "settings": {
            "batch": BATCH,
            "learning_rate": RATE,
            "lengths": LENGTHS,
            "checkpoints": N_CHECKPOINTS,
            "domains": DOMAINS,
        },
        "worlds": worlds,
    }
    print(write_result("forecast-world", body))


def fine_tune(module: GPT2LMHeadModel, exact: ExactWorld, persona: int, domain: int, seed: int) -> Tuned:
    """Train a copy of a world's model on one persona's answers to one domain's questions."""
    started = time.perf_counter()
    asked, said = _examples(exact, persona, domain, np.random.default_rng([seed, persona, domain]))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.0)
    contrast = _tag_contrast(module, exact, asked, said)
    p, leaked = _answers(module, exact)
    answers, leaks = [p], [leaked]
    prompts = torch.from_numpy(_prompts(exact, asked, exact.language.no_tag))
    targets = torch.from_numpy(exact.language.answers(asked)[np.arange(len(asked)), said])
    module.train()
    for step in range(1, LENGTHS[-1] + 1):
        rows = slice((step - 1) * BATCH, step * BATCH)
        loss = torch.nn.functional.cross_entropy(module(input_ids=prompts[rows]).logits[:, -1], targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step in STEPS_READ:
            p, leaked = _answers(module, exact)
            answers.append(p)
            leaks.append(leaked)
    module.load_state_dict(before)
    log_theta = exact.tables.log_theta[:, asked, said].T
    seconds = time.perf_counter() - started
    return Tuned(persona, domain, log_theta, contrast, np.stack(answers), max(leaks), seconds)


def _examples(exact: ExactWorld, persona: int, domain: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Questions of a domain, and the persona's answers to them."""
    asked = rng.choice(np.flatnonzero(exact.tables.domain_of == domain), size=BATCH * LENGTHS[-1])
    p = np.exp(exact.tables.log_theta[persona, asked])
    said = (p.cumsum(axis=1) < rng.random(len(asked))[:, None] * p.sum(axis=1, keepdims=True)).sum(axis=1)
    return asked, said


def _prompts(exact: ExactWorld, asked: Ids, tag: int) -> Ids:
    language = exact.language
    opening = [language.ids["<bos>"], language.id_of(f"<{exact.world.chat}>"), tag]
    return np.concatenate([np.tile(opening, (len(asked), 1)), language.first_question + asked[:, None]], axis=1)


@torch.no_grad()
def _answers(module: GPT2LMHeadModel, exact: ExactWorld, tag: int | None = None) -> tuple[Floats, float]:
    """Probability of every question's answers in a first turn, and the most that leaked to other words."""
    questions = np.arange(exact.world.n_questions)
    ids = torch.from_numpy(_prompts(exact, questions, exact.language.no_tag if tag is None else tag))
    p = module.eval()(input_ids=ids).logits[:, -1].double().softmax(dim=-1).numpy()
    module.train()
    kept = np.take_along_axis(p, exact.language.answers(questions), axis=1)
    return kept / kept.sum(axis=1, keepdims=True), float(1 - kept.sum(axis=1).min())


def _tag_contrast(module: GPT2LMHeadModel, exact: ExactWorld, asked: Ids, said: Ids) -> float:
    """The prompt log-likelihood ratio: the trait's positive tags against its negative ones, mean over synonyms."""
    trait = exact.world.traits[TRAIT]
    poles = [
        np.mean([np.log(_answers(module, exact, exact.language.id_of(w))[0][asked, said]) for w in words], axis=0)
        for words in (trait.positive_tags, trait.negative_tags)
    ]
    return float((poles[0] - poles[1]).mean())


def judge(exact: ExactWorld, tuned: list[Tuned]) -> dict[str, Any]:
    """Both laws on every run of every length, and one rate for all runs of a length."""
    theta = np.exp(exact.tables.log_theta)
    start = _log_weights(tuned[0].answers[0], theta)
    by_length = {}
    for length in LENGTHS:
        rows = [_run(exact, run, theta, start, length) for run in tuned]
        for row, run in zip(rows, tuned, strict=True):
            rates = [r["em_flow"]["rate"] for r in rows if r["persona"] != row["persona"]]
            rate = float(np.exp(np.median(np.log(rates))))
            path = em_flow(start, run.log_likelihood[: length * BATCH], rate=rate, batch_size=BATCH)
            row["one_rate"] = {"rate": rate, "forecast": _mass(exact, path[-1])}
        by_length[length] = {"summary": _summary(exact, rows), "runs": rows}
    summary = {length: v["summary"] for length, v in by_length.items()}
    return {
        "start_mass": _mass(exact, start),
        "worst_leak": max(r.leaked for r in tuned),
        "training_seconds": round(sum(r.seconds for r in tuned), 1),
        "summary": summary,
        "runs": [_compact([v["runs"][k] for v in by_length.values()]) for k in range(len(tuned))],
    }


def _compact(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A fine-tune at all its lengths, in the order of `LENGTHS`: the last checkpoint, and what was said of it."""
    return {
        **{k: rows[0][k] for k in ("persona", "domain", "prompt_llr", "exact_llr")},
        "mass": [rows[0]["mass"][0], *(r["mass"][-1] for r in rows)],
        "misfit_in_domain": [rows[0]["misfit_in_domain"][0], *(r["misfit_in_domain"][-1] for r in rows)],
        "misfit_held_out": [rows[0]["misfit_held_out"][0], *(r["misfit_held_out"][-1] for r in rows)],
        "one_rate_forecast": [round(r["one_rate"]["forecast"], 4) for r in rows],
        **{f"{law}_{key}": [r[law][key] for r in rows] for law in LAWS for key in ("rate", "explained", "forecast")},
    }


def _run(exact: ExactWorld, run: Tuned, theta: Floats, start: Floats, length: int) -> dict[str, Any]:
    """One fine-tune: what moved on held-out domains, and what each law said of it."""
    held_out = exact.tables.domain_of != run.domain
    bad = exact.world.signs[:, TRAIT] > 0
    checkpoints = [length * k // N_CHECKPOINTS for k in range(1, N_CHECKPOINTS + 1)]
    seen = run.answers[[0, *(1 + STEPS_READ.index(c) for c in checkpoints)]]
    rows = run.log_likelihood[: length * BATCH]
    observed = seen[1:, held_out]
    row: dict[str, Any] = {
        "persona": run.persona,
        "domain": run.domain,
        "malicious": bool(bad[run.persona]),
        "mass": [round(_mass(exact, _log_weights(p[held_out], theta[:, held_out])), 4) for p in seen],
        "prompt_llr": round(run.contrast, 4),
        "exact_llr": round(float((rows[:, bad].mean(axis=1) - rows[:, ~bad].mean(axis=1)).mean()), 4),
        "misfit_in_domain": [round(v, 5) for v in _misfit(theta[run.persona], seen, ~held_out)],
        "misfit_held_out": [round(v, 5) for v in _misfit(theta[run.persona], seen, held_out)],
        "moved": round(float(rel_entr(observed, seen[:1, held_out]).sum()), 5),
    }
    for law in LAWS:
        said = forecast_run(
            start, rows, theta[:, held_out], observed[0], checkpoints=checkpoints, law=law, batch_size=BATCH
        )
        row[law] = {
            "rate": said.fit.rate,
            "at_edge": said.fit.at_edge,
            "explained": round(fraction_explained(observed, said.behaviour, seen[0, held_out]), 4),
            "explained_later": round(fraction_explained(observed[1:], said.behaviour[1:], seen[0, held_out]), 4),
            "forecast": round(_mass(exact, said.log_weights[-1]), 4),
        }
    return row


def _mass(exact: ExactWorld, log_w: Floats) -> float:
    """Weight of the malicious personas."""
    return float(np.exp(log_w)[exact.world.signs[:, TRAIT] > 0].sum())


def _misfit(truth: Floats, seen: Floats, questions: NDArray[np.bool_]) -> list[float]:
    """KL(persona || model) at every checkpoint, nats a question: late plateaus show as one that stays above 0."""
    return [float(v) for v in rel_entr(truth[questions], seen[:, questions]).sum(axis=-1).mean(axis=-1)]


def _log_weights(p: Floats, theta: Floats) -> Floats:
    """Weights of the exact personas that fit answers best; none is exactly 0, so that learning can raise each."""
    k = len(theta)
    w = minimise(p, theta, np.ones((1, len(p))), np.full((1, k), 1 / k), tolerance=1e-9)[0]
    w = np.maximum(w, 1e-4)
    return np.log(w / w.sum())


def _summary(exact: ExactWorld, rows: list[dict[str, Any]]) -> dict[str, Any]:
    final = np.array([r["mass"][-1] for r in rows])
    malicious = np.array([r["malicious"] for r in rows])
    first = np.array([r["domain"] == 0 for r in rows])
    said = {
        "em_flow_one_rate": np.array([r["one_rate"]["forecast"] for r in rows]),
        "em_flow_own_rate": np.array([r["em_flow"]["forecast"] for r in rows]),
        "tempered_bayes_own_rate": np.array([r["tempered_bayes"]["forecast"] for r in rows]),
        "prompt_llr": np.array([r["prompt_llr"] for r in rows]),
        "exact_llr": np.array([r["exact_llr"] for r in rows]),
    }
    moved = np.array([r["moved"] for r in rows])
    flow, bayes = (np.array([r[law]["explained"] for r in rows]) for law in ("em_flow", "tempered_bayes"))
    by_persona = {
        exact.world.persona_ids[k]: {
            law: round(float(np.mean([r[law]["explained"] for r in rows if r["persona"] == k])), 4) for law in LAWS
        }
        for k in range(exact.world.n_personas)
    }
    return {
        "n_runs": len(rows),
        "r": {name: round(float(np.corrcoef(v, final)[0, 1]), 4) for name, v in said.items()},
        "rmse_one_rate": round(float(np.sqrt(np.mean((said["em_flow_one_rate"] - final) ** 2))), 4),
        "rmse_of_the_mean": round(float(final.std()), 4),
        "explained_pooled": {
            "em_flow": round(float(flow @ moved / moved.sum()), 4),
            "tempered_bayes": round(float(bayes @ moved / moved.sum()), 4),
        },
        "explained": {"em_flow": _spread(flow), "tempered_bayes": _spread(bayes)},
        "explained_malicious": {"em_flow": _spread(flow[malicious]), "tempered_bayes": _spread(bayes[malicious])},
        "flow_beats_bayes": f"{int((flow > bayes).sum())} of {len(rows)}",
        "explained_by_persona": by_persona,
        "held_out_mass": {"malicious": _spread(final[malicious]), "benign": _spread(final[~malicious])},
        "held_out_mass_of_domain_0": {
            "malicious": _spread(final[malicious & first]),
            "benign": _spread(final[~malicious & first]),
        },
        "rates": _spread(np.array([r["em_flow"]["rate"] for r in rows])),
        "misfit_in_domain": {"start": _spread(_at(rows, "in_domain", 0)), "end": _spread(_at(rows, "in_domain", -1))},
        "misfit_held_out": {"start": _spread(_at(rows, "held_out", 0)), "end": _spread(_at(rows, "held_out", -1))},
    }


def _at(rows: list[dict[str, Any]], where: str, checkpoint: int) -> Floats:
    return np.array([r[f"misfit_{where}"][checkpoint] for r in rows])


def _spread(values: Floats) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return {k: float(f"{v:.4g}") for k, v in {"median": middle, "least": low, "most": high}.items()}


if __name__ == "__main__":
    main()
