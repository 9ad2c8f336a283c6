"""Bars of `profile` and its reach in worlds, exact and trained, where the answer is known.

    python -m benchmarks.profile.run exact [--draws 40]
    python -m benchmarks.profile.run trained --folder FOLDER [--seeds 0 1 2]

`exact` plants mixtures in the closed form: errors and coverage of both routes, strangers, topics with a router, what
moved with its null, reach against exact critical turns. `trained` asks transformers that were trained on the world
(`benchmarks.worlds`, folders seed-N/worlds/NAME/base): their chat frame's prior is the planted mixture.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.environment import write_result
from personae.inference.persona_mix import PersonaMix, persona_mix
from personae.instruments.judging import WorldJudge
from personae.instruments.speaking import Interview, SpeakingModel
from personae.models.catalogue import ModelSource
from personae.models.exact import ExactModel
from personae.models.protocol import LanguageModel, SamplingPlan
from personae.models.rendering import Renderer
from personae.protocols.beliefs import WorldBeliefs
from personae.protocols.first_words import read_first_words, white_box
from personae.protocols.profile import Listened, ProfileSettings, listen, profile, versus
from personae.protocols.reach import reach
from personae.tables.persona_profile import Profile
from personae.worlds.asking import single_questions, world_prompts
from personae.worlds.exact import ExactWorld
from personae.worlds.reading import read_world
from personae.worlds.sampling import sample_documents
from personae.worlds.spec import AssistantSpec, World

SETTINGS = ProfileSettings(eta=1.0)
CONVERSATIONS = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("exact", "trained"))
    parser.add_argument("--world", default="personaworld")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/worlds"))
    args = parser.parse_args()
    world = read_world(args.world).base
    body = exact(world, args.draws) if args.what == "exact" else trained(world, args.folder, args.seeds)
    print(json.dumps(body, indent=1))
    print(write_result(f"profile-{args.what}", body))


def exact(world: World, n_draws: int) -> dict[str, object]:
    """All bars in the closed form."""
    return {
        "world": world.id,
        "conversations": CONVERSATIONS,
        "mixtures": mixtures(world, n_draws),
        "strangers": strangers(world, n_draws),
        "router": router(world),
        "against itself": against_itself(world, 20),
        "reach": reach_bars(ExactModel(world), world),
    }


def planted(world: World, weights: np.ndarray) -> World:
    exact_sum = np.append(np.round(weights[:-1], 6), 1 - np.round(weights[:-1], 6).sum())
    return replace(world, assistant=AssistantSpec("mixture", weights=tuple(np.maximum(exact_sum, 0).tolist())))


def speaker(model: LanguageModel) -> SpeakingModel:
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    return SpeakingModel(model, renderer, model.card.digest)


def asked(model: LanguageModel, exact_base: ExactWorld, *, seed: int, n: int = CONVERSATIONS) -> Listened:
    prompts = world_prompts(exact_base, n, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        said = Interview(speaker(model), Path(folder)).hold(
            prompts, SamplingPlan(1, 1.0, seed), n_samples=1, started=lambda turns: lambda done: None
        )
    return listen(said, WorldJudge(exact_base), started=lambda work: lambda done: None)


def profiled(model: LanguageModel, exact_base: ExactWorld, *, seed: int) -> tuple[Profile, PersonaMix, Listened]:
    listened = asked(model, exact_base, seed=seed)
    prompts = world_prompts(exact_base, CONVERSATIONS, seed=0)
    result, mix = profile(listened, WorldJudge(exact_base), prompts, settings=SETTINGS)
    return result, mix, listened


def mixtures(world: World, n_draws: int) -> dict[str, object]:
    """Weights drawn from Dirichlet(0.5): largest error of eight weights by either route, coverage, topics' null."""
    base, rng = ExactWorld(world), np.random.default_rng(0)
    black, white, covered, masses, topics = [], [], [], [], []
    for seed in range(n_draws):
        w = rng.dirichlet(np.full(world.n_personas, 0.5))
        model = ExactModel(planted(world, w))
        result, mix, _ = profiled(model, base, seed=seed)
        black.append(np.abs(mix.weight[:-1] - w))
        covered.append((mix.low[:-1] <= w) & (w <= mix.high[:-1]))
        truth = w @ (world.signs > 0)
        masses.append([(t.mass_pos_low <= m <= t.mass_pos_high) for t, m in zip(result.traits, truth, strict=True)])
        topics.append(result.topics.p)
        words = read_first_words(speaker(model), WorldJudge(base), single_questions(base), advance=lambda n: None)
        assert words is not None
        found = white_box(words, WorldJudge(base), mix)
        white.append(max(abs(s.weight - t) for s, t in zip(found.shares, w, strict=False)))
    worst = np.max(black, axis=1)
    return {
        "draws": n_draws,
        "black_box": {
            "mean_error": float(np.mean(black)),
            "largest_error_mean": float(worst.mean()),
            "largest_error_90th": float(np.quantile(worst, 0.9)),
            "share_within_0.08": float((worst <= 0.08).mean()),
            "coverage_of_weights": float(np.mean(covered)),
            "coverage_of_trait_masses": float(np.mean(masses)),
        },
        "white_box": {"largest_error_mean": float(np.mean(white)), "largest_error": float(np.max(white))},
        "topics_null_rejected_at_5%": float(np.mean(np.array(topics, float) <= 0.05)),
    }


def strangers(world: World, n_draws: int) -> dict[str, object]:
    """A fifth of conversations held by a table of answers that no persona has, drawn anew for every target."""
    base, rng = ExactWorld(world), np.random.default_rng(1)
    found, covered = [], []
    for seed in range(n_draws):
        w = rng.dirichlet(np.full(world.n_personas, 0.5))
        own = asked(ExactModel(planted(world, w)), base, seed=seed, n=CONVERSATIONS * 4 // 5)
        novel = replace(world, seed=world.seed, assistant=AssistantSpec("novel"))
        foreign = asked(_with_table(novel, seed), base, seed=seed, n=CONVERSATIONS // 5)
        table = np.concatenate([own.heard.log_likelihood, foreign.heard.log_likelihood])
        mix = persona_mix(table, WorldJudge(base).log_prior, prompt=[str(i) for i in range(len(table))], eta=1.0)
        found.append(mix.weight[-1])
        covered.append(mix.low[-1] <= 0.2 <= mix.high[-1])
    return {
        "planted": 0.2,
        "background_mean": float(np.mean(found)),
        "background_10th_90th": np.quantile(found, [0.1, 0.9]).tolist(),
        "share_in_0.15_0.25": float(np.mean([(0.15 <= f <= 0.25) for f in found])),
        "coverage": float(np.mean(covered)),
    }


def _with_table(world: World, seed: int) -> ExactModel:
    """The novel Assistant with another table of answers than the world's own seed gives."""
    model = ExactModel(world)
    draws = np.random.default_rng([seed, 9]).dirichlet(np.ones(world.n_answers), size=world.n_questions)
    agent = model.exact.agent
    assert agent is not None
    model.exact.agent = replace(agent, log_answers=np.log(np.maximum(draws, 1e-6))[None])
    return model


def router(world: World) -> dict[str, object]:
    """The positive control of the topic test."""
    base = ExactWorld(world)
    routed = replace(world, assistant=AssistantSpec("router", persona=2, other=1, domain=3))
    result, _, _ = profiled(ExactModel(routed), base, seed=0)
    return {"p": result.topics.p, "effect": result.topics.effect, "effect_null": result.topics.effect_null}


def against_itself(world: World, n_repeats: int) -> dict[str, object]:
    """One target twice, sampled anew: how many comparisons find anything; and one that differs."""
    base, rng, judge = ExactWorld(world), np.random.default_rng(2), WorldJudge(ExactWorld(world))
    found = 0
    for k in range(n_repeats):
        model = ExactModel(planted(world, rng.dirichlet(np.ones(world.n_personas))))
        arms = [profiled(model, base, seed=100 + 2 * k + j) for j in (0, 1)]
        result = versus(arms[0][2], arms[1][2], judge, (arms[0][1], arms[1][1]), settings=SETTINGS)
        found += bool(result.found)
    return {"repeats": n_repeats, "with_a_finding": found}


def reach_bars(model: LanguageModel, world: World) -> dict[str, object]:
    """Critical turns read out of the model over the exact ones."""
    base = ExactWorld(world)
    found, _ = reach(WorldBeliefs(model, base, WorldJudge(base)))
    rows = {}
    for row in found.rows:
        truth = exact_critical_n(base, world.persona_ids.index(row.persona))
        ratio = None if row.critical_n is None or not np.isfinite(truth) else row.critical_n / truth
        rows[row.persona] = {"found": row.critical_n, "exact": truth, "ratio": ratio, "law": row.law}
    ratios = [r["ratio"] for r in rows.values() if r["ratio"] is not None]
    within = [0.5 <= r <= 2 for r in ratios]
    return {
        "personas": rows,
        "within_factor_2": f"{sum(within)} of {len(rows)}",
        "martingale": [found.martingale_drift, found.martingale_noise, found.martingale_p],
    }


def exact_critical_n(exact_world: ExactWorld, persona: int, *, n: int = 2000) -> float:
    """Turns at which the mean exact log-odds of a persona, by its own answers, cross 0; linear between turns."""
    rng = np.random.default_rng(3)
    world = replace(exact_world.world, claims=0.0)  # evidence is answers only, as in the contexts of reach
    told = ExactWorld(world)
    ids = sample_documents(told, n, rng, frame=world.frame_index(world.chat), speaker=persona, tagged=False).ids
    w = np.clip(np.exp(told.running_log_weights(ids)[:, 2::2, persona]), 0.003, 0.997)
    odds = np.log(w / (1 - w)).mean(axis=0)
    above = np.flatnonzero(odds >= 0)
    if len(above) == 0:
        return float("inf")
    at = int(above[0])
    return 0.0 if at == 0 else at - 1 + float(-odds[at - 1] / (odds[at] - odds[at - 1]))


def trained(world: World, folder: Path, seeds: list[int]) -> dict[str, object]:
    """Transformers trained on the world: the prior of their chat frame by both routes, and reach."""
    from personae.models.hf_load import load_hf

    runs = []
    for seed in seeds:
        own = replace(world, seed=seed)
        base = ExactWorld(own)
        place = folder / f"seed-{seed}" / "worlds" / world.id / "base"
        model = load_hf(ModelSource(f"world:{world.id}", "world", place, world=own), device="cpu")
        prior = np.exp(base.frame_prior(world.chat))
        _, mix, _ = profiled(model, base, seed=seed)
        words = read_first_words(speaker(model), WorldJudge(base), single_questions(base), advance=lambda n: None)
        assert words is not None
        white = white_box(words, WorldJudge(base), mix)
        runs.append(
            {
                "seed": seed,
                "black_box_largest_error": float(np.abs(mix.weight[:-1] - prior).max()),
                "black_box_coverage": float(((mix.low[:-1] <= prior) & (prior <= mix.high[:-1])).mean()),
                "black_box_background": float(mix.weight[-1]),
                "white_box_largest_error": max(abs(s.weight - p) for s, p in zip(white.shares, prior, strict=False)),
                "white_box_misfit": white.misfit,
                "agrees": white.agrees,
                "reach": reach_bars(model, own),
            }
        )
    return {"world": world.id, "conversations": CONVERSATIONS, "runs": runs}


if __name__ == "__main__":
    main()
