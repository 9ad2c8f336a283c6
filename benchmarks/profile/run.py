"""Bars of `profile` and its reach in worlds, exact and trained, where the answer is known.

    python -m benchmarks.profile.run exact [--draws 40] [--part mixtures strangers router itself reach]
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

from benchmarks.environment import RESULTS, write_result
from personae.inference.persona_mix import PersonaMix, persona_mix
from personae.inference.topics import topic_test
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
from personae.tables.transcripts import Said, Transcripts
from personae.worlds.asking import TURNS, single_questions, world_prompts
from personae.worlds.exact import ExactWorld
from personae.worlds.reading import read_world
from personae.worlds.sampling import sample_documents
from personae.worlds.spec import AssistantSpec, World

SETTINGS = ProfileSettings(eta=1.0)
CONVERSATIONS = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("exact", "trained"))
    parser.add_argument("--part", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--world", default="personaworld")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/worlds"))
    args = parser.parse_args()
    world = read_world(args.world).base
    if args.what == "trained":
        body = trained(world, args.folder, args.seeds)
        runs = {r["seed"]: r for r in [*_stored("trained").get("runs", []), *body["runs"]]}
        body["runs"] = [runs[seed] for seed in sorted(runs)]
    else:
        stored = _stored("exact")
        kept = {part: stored[part] for part in PARTS if part in stored}
        made = {part: PARTS[part](world, args.draws) for part in args.part}
        body = {"world": world.id, "conversations": CONVERSATIONS, "turns": TURNS, **kept, **made}
    print(json.dumps(body, indent=1))
    print(write_result(f"profile-{args.what}", body))


def _stored(what: str) -> dict:
    """What an earlier run found, so that parts and seeds can be run one by one."""
    path = RESULTS / f"profile-{what}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def planted(world: World, weights: np.ndarray) -> World:
    exact_sum = np.append(np.round(weights[:-1], 6), 1 - np.round(weights[:-1], 6).sum())
    return replace(world, assistant=AssistantSpec("mixture", weights=tuple(np.maximum(exact_sum, 0).tolist())))


def speaker(model: LanguageModel) -> SpeakingModel:
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    return SpeakingModel(model, renderer, model.card.digest)


def asked(model: LanguageModel, exact_base: ExactWorld, *, seed: int, n: int = CONVERSATIONS) -> Listened:
    """What a model says to the world's prompts, sampled turn by turn."""
    prompts = world_prompts(exact_base, n, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        said = Interview(speaker(model), Path(folder)).hold(
            prompts, SamplingPlan(1, 1.0, seed), n_samples=1, started=lambda turns: lambda done: None
        )
    return judged(said, exact_base)


def drawn(exact_base: ExactWorld, weights: np.ndarray, seed: int, *, strange: float = 0.0) -> Listened:
    """The same from the tables of answers at once: one speaker a conversation; a share by a table that nobody has."""
    rng = np.random.default_rng([seed, 4])
    language, theta = exact_base.language, np.exp(exact_base.base.log_theta)
    novel = rng.dirichlet(np.ones(theta.shape[2]), size=theta.shape[1])[None]
    tables = np.concatenate([theta, novel])
    prompts = world_prompts(exact_base, CONVERSATIONS, seed=0)
    who = rng.choice(len(tables), size=len(prompts), p=np.append(weights * (1 - strange), strange))
    replies: list[Said] = []
    for prompt, k in zip(prompts, who, strict=True):
        q = np.array([language.ids[t] - language.first_question for t in prompt.turns])
        cumulative = tables[k, q].cumsum(axis=1)
        a = (cumulative < rng.random((len(q), 1)) * cumulative[:, -1:]).sum(axis=1)
        words = [language.words[int(language.answers(int(x))[y])] for x, y in zip(q, a, strict=True)]
        pairs = enumerate(zip(prompt.turns, words, strict=True))
        replies += [Said(prompt.id, prompt.topic, 0, t, ask, word) for t, (ask, word) in pairs]
    return judged(Transcripts("drawn", tuple(replies)), exact_base)


def judged(said: Transcripts, exact_base: ExactWorld) -> Listened:
    return listen(said, WorldJudge(exact_base), started=lambda work: lambda done: None)


def mixed(listened: Listened, exact_base: ExactWorld, seed: int) -> PersonaMix:
    table, prior = listened.heard.log_likelihood, WorldJudge(exact_base).log_prior
    return persona_mix(table, prior, prompt=listened.prompt, eta=1.0, seed=seed)


def mixtures(world: World, n_draws: int) -> dict[str, object]:
    """Weights drawn from Dirichlet(0.5): largest error of eight weights by either route, coverage, topics' null."""
    base, rng = ExactWorld(world), np.random.default_rng(0)
    signs = world.signs > 0
    black, white, covered, masses, topics = [], [], [], [], []
    for seed in range(n_draws):
        w = rng.dirichlet(np.full(world.n_personas, 0.5))
        listened = drawn(base, w, seed)
        mix = mixed(listened, base, seed)
        black.append(np.abs(mix.weight[:-1] - w))
        covered.append((mix.low[:-1] <= w) & (w <= mix.high[:-1]))
        for r in range(signs.shape[1]):
            _, low, high = mix.functional(np.append(signs[:, r], False).astype(float))
            masses.append(low <= w @ signs[:, r] <= high)
        test = topic_test(
            listened.heard.log_likelihood,
            mix.fit.responsibilities,
            mix.fit.mode,
            topic=listened.topic,
            prompt=listened.prompt,
            eta=1.0,
            n_permutations=199,
            seed=seed,
        )
        topics.append(test.p)
        target = speaker(ExactModel(planted(world, w)))
        words = read_first_words(target, WorldJudge(base), single_questions(base), advance=lambda n: None)
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
    result: dict[str, object] = {"draws": n_draws}
    for share in (0.0, 0.2):
        found, covered, rest = [], [], []
        for seed in range(n_draws):
            w = rng.dirichlet(np.full(world.n_personas, 0.5))
            mix = mixed(drawn(base, w, seed, strange=share), base, seed)
            found.append(mix.weight[-1])
            covered.append(mix.low[-1] <= share <= mix.high[-1])
            truth = w * (1 - share)
            rest.append((mix.low[:-1] <= truth) & (truth <= mix.high[:-1]))
        result[f"strangers {share:g}"] = {
            "background_mean": float(np.mean(found)),
            "background_10th_90th": np.quantile(found, [0.1, 0.9]).tolist(),
            "share_in_0.15_0.25": float(np.mean([(0.15 <= f <= 0.25) for f in found])),
            "coverage_of_background": float(np.mean(covered)),
            "coverage_of_weights": float(np.mean(rest)),
        }
    return result


def router(world: World, n_draws: int) -> dict[str, object]:
    """The positive control of the topic test, sampled turn by turn from the router itself."""
    base = ExactWorld(world)
    found = []
    for seed in range(max(1, n_draws // 10)):
        routed = replace(world, assistant=AssistantSpec("router", persona=2, other=1, domain=3))
        listened = asked(ExactModel(routed), base, seed=seed)
        prompts = world_prompts(base, CONVERSATIONS, seed=0)
        topics = profile(listened, WorldJudge(base), prompts, settings=SETTINGS)[0].topics
        found.append({"p": topics.p, "effect": topics.effect, "effect_null": topics.effect_null})
    return {"draws": found}


def itself(world: World, n_draws: int) -> dict[str, object]:
    """One target twice, drawn anew: how many comparisons find anything, at 5% and at the default rate."""
    base, rng, judge = ExactWorld(world), np.random.default_rng(2), WorldJudge(ExactWorld(world))
    found, at_default = 0, 0
    for k in range(n_draws):
        w = rng.dirichlet(np.ones(world.n_personas))
        arms = [drawn(base, w, 1000 + 2 * k + j) for j in (0, 1)]
        mixes = tuple(mixed(arm, base, k) for arm in arms)
        result = versus(arms[0], arms[1], judge, (mixes[0], mixes[1]), settings=SETTINGS)
        found += min(m.q for m in result.moves) <= 0.05
        at_default += bool(result.found)
    return {"repeats": n_draws, "with_a_finding_at_0.05": found, f"with_a_finding_at_{SETTINGS.fdr:g}": at_default}


def reach_exact(world: World, n_draws: int) -> dict[str, object]:
    """Reach read out of the closed form of the world's chat frame."""
    return reach_bars(ExactModel(world), world)


PARTS = {"mixtures": mixtures, "strangers": strangers, "router": router, "itself": itself, "reach": reach_exact}


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


def trained(world: World, folder: Path, seeds: list[int]) -> dict:
    """Transformers trained on the world: the prior of their chat frame by both routes, and reach."""
    from personae.models.hf_load import load_hf

    runs = []
    for seed in seeds:
        own = replace(world, seed=seed)
        base = ExactWorld(own)
        place = folder / f"seed-{seed}" / "worlds" / world.id / "base"
        model = load_hf(ModelSource(f"world:{world.id}", "world", place, world=own), device="cpu")
        prior = np.exp(base.frame_prior(world.chat))
        mix = mixed(asked(model, base, seed=seed), base, seed)
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
