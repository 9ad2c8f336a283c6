"""Is a trained world the world it should be? Every row of the project's table, the model against the exact answer.

    KL            mean over answers of KL(Bayes || model)
    read-out      argmin_w sum_q KL(p_q || sum_k w_k theta_kq): who the model's answers say is speaking
    belief curve  log-odds of a trait after n turns of a character that has it
    probe         ridge from the last block's output to the exact log-odds, by document

Contexts are documents of the world, drawn anew. Rows that need fine-tuning are listed as not run. Positive
control: the closed form itself passes every row that asks for answers only. Not here: the exact mathematics
(`worlds.exact`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from personae.models.protocol import LanguageModel, Scorable
from personae.protocols.world_measures import predictive, probe_r2, read_out, trait_mass
from personae.tables.world_check import FAILS, NOT_RUN, PASSES, BeliefCurve, CheckRow, WorldCheck
from personae.worlds.exact import ExactWorld
from personae.worlds.explained import explain, heterogeneity
from personae.worlds.language import Kind
from personae.worlds.sampling import sample_documents
from personae.worlds.spec import AssistantSpec, World

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
States = Callable[[Ids], Floats]

ASSISTANT_BAR = 0.02  # nats an answer
_KL_DOCUMENTS = 3000
_CONTEXTS = 200
_SHOTS = 40
_PROBE_DOCUMENTS = 300
_CLIP = 0.005  # of a trait's mass in the read-out: below it, an error of 0.001 in an answer decides
_CURVE_CLIP = 0.003  # log-odds of 5.8: as far as the curve of the methods' table goes (-1.90 to 5.79)
_FAR_CLIP = 0.001

_NEEDS_FINE_TUNING = (
    ("emergent generalisation", "held-out P(malice), trained on one domain", "at least 0.4; benign control below 0.13"),
    ("EM flow", "FVE of the forecast from the first checkpoint", "at least 0.75 and above tempered Bayes"),
    ("24-run forecast", "correlation with the outcome of 24 fine-tunes", "r at least 0.95"),
    ("inoculation", "share of the shift that the prompt removes; of an irrelevant one", "at least 0.7; at most 0.1"),
    ("FVE of fine-tunes", "of a persona fine-tune and of a novel implant, cross-fitted", "at least 0.9; at most 0.15"),
)  # fmt: skip


def check_world(
    model: LanguageModel,
    exact: ExactWorld,
    *,
    seed: int = 0,
    kl_bar: float = 0.010,
    states: States | None = None,
    losses: Sequence[tuple[int, float]] = (),
    assistant: tuple[LanguageModel, ExactWorld] | None = None,
) -> WorldCheck:
    """Run the checks.

    Args:
        model: The trained model of the world (or its closed form).
        exact: The world before post-training.
        seed: Of the documents drawn.
        kl_bar: Largest KL accepted, nats an answer.
        states: Gives the last block's output for rows of ids, shape (n, length, width); None where the model
            has none, and then the probe is not run.
        losses: (step, loss) of its training, carried into the result.
        assistant: The model after post-training and its exact answer, where the world has an Assistant.
    """
    rng = np.random.default_rng([seed, 77])
    kl = _kl_row(model, exact, rng, kl_bar)
    frame_row, priors = _frame_row(model, exact)
    posterior_row, scatter = _posterior_row(model, exact, rng)
    curve_row, curve = _curve_row(model, exact, rng)
    rows = (
        kl,
        frame_row,
        posterior_row,
        _probe_row(exact, states, rng),
        *(CheckRow(i, w, "", a, NOT_RUN, note="needs fine-tuning: not run") for i, w, a in _NEEDS_FINE_TUNING[:4]),
        curve_row,
        _statement_row(model, exact),
        *_implant_rows(exact, seed),
        *(CheckRow(i, w, "", a, NOT_RUN, note="needs fine-tuning: not run") for i, w, a in _NEEDS_FINE_TUNING[4:]),
    )
    if assistant is not None:
        rows += (_kl_row(*assistant, rng, ASSISTANT_BAR, chat_only=True),)
    return WorldCheck(exact.world.id, model.card.name, rows, curve, scatter, priors, tuple(losses))


def _theta(exact: ExactWorld) -> Floats:
    return np.exp(exact.tables.log_theta)


def _verdict(holds: bool) -> str:
    return PASSES if holds else FAILS


def _kl_row(
    model: LanguageModel, exact: ExactWorld, rng: np.random.Generator, bar: float, *, chat_only: bool = False
) -> CheckRow:
    """One answer of each of many documents; every turn equally often."""
    language, world = exact.language, exact.world
    made = sample_documents(exact, _KL_DOCUMENTS, rng, frame=world.frame_index(world.chat) if chat_only else None)
    turn = np.arange(len(made.ids)) % world.n_turns
    batch: list[Scorable] = []
    truth: list[Floats] = []
    prior: list[Floats] = []
    for t in range(world.n_turns):
        rows = made.ids[turn == t]
        rows = rows[language.kind[rows[:, 3 + 2 * t]] == Kind.QUESTION][:, : 4 + 2 * t]
        options = language.answers(rows[:, -1] - language.first_question)
        bare = np.column_stack([rows[:, :2], np.full(len(rows), language.no_tag), rows[:, -1]])
        for kept, contexts in ((truth, rows), (prior, bare)):
            kept.append(np.take_along_axis(np.exp(exact.next_log_probs(contexts)), options, axis=1))
        for row, answers in zip(rows, options, strict=True):
            batch += [Scorable((*row.tolist(), int(a)), len(row)) for a in answers]
    p, base = np.concatenate(truth), np.concatenate(prior)
    log_q = np.array([r.log_likelihood for r in model.score(batch)]).reshape(p.shape)
    each = (p * (np.log(p) - log_q)).sum(axis=1)
    information = float((p * (np.log(p) - np.log(base))).sum(axis=1).mean())
    kl, error = float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))
    leaked = float(1 - np.exp(log_q).sum(axis=1).mean())
    return CheckRow(
        "assistant KL" if chat_only else "KL",
        "KL(exact || model) of the Assistant, nats an answer" if chat_only else "KL(Bayes || model), nats an answer",
        f"{max(kl, 0.0):.4f} ± {error:.4f}" + ("" if chat_only else f"; context is worth {information:.3f}"),
        f"at most {bar:.3f}",
        _verdict(kl <= bar),
        {"kl": kl, "standard_error": error, "context_information": information, "leaked_mass": leaked, "n": len(p)},
    )


def _frame_row(
    model: LanguageModel, exact: ExactWorld
) -> tuple[CheckRow, tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]]:
    language = exact.language
    frames = exact.world.frames
    contexts = [np.array(language.encode(f"<bos> <{f.id}> <none>")) for f in frames]
    found = read_out(predictive(model, exact, contexts), _theta(exact))
    true = np.exp(np.stack([exact.frame_prior(f.id) for f in frames]))
    distance = 0.5 * np.abs(found - true).sum(axis=1)
    worst = float(distance.max())
    row = CheckRow(
        "frame priors",
        "total variation of the personas read out of each frame, worst frame",
        f"{worst:.3f}",
        "at most 0.08",
        _verdict(worst <= 0.08),
        {f.id: float(d) for f, d in zip(frames, distance, strict=True)},
    )
    pairs = zip(frames, true, found, strict=True)
    return row, tuple((f.id, tuple(t.tolist()), tuple(w.tolist())) for f, t, w in pairs)


def _posterior_row(
    model: LanguageModel, exact: ExactWorld, rng: np.random.Generator
) -> tuple[CheckRow, tuple[tuple[float, float], ...]]:
    most = min(16, exact.world.n_turns - 1)
    made = sample_documents(exact, _CONTEXTS, rng)
    lengths = rng.integers(0, most + 1, size=_CONTEXTS)
    contexts = [row[: 3 + 2 * n] for row, n in zip(made.ids, lengths, strict=True)]
    found = trait_mass(exact, read_out(predictive(model, exact, contexts), _theta(exact)))
    true = trait_mass(exact, np.exp(np.concatenate([exact.log_weights(c[None]) for c in contexts])))
    x, y = (logit(np.clip(m, _CLIP, 1 - _CLIP)).ravel() for m in (true, found))
    slope = float(np.polyfit(x, y, 1)[0])
    r = float(np.corrcoef(x, y)[0, 1])
    off = float(np.abs(true - found).mean())
    row = CheckRow(
        "posterior read-out",
        f"log-odds of traits after 0 to {most} turns, model on exact: slope, r, mean absolute error of the mass",
        f"slope {slope:.3f}, r {r:.4f}, error {off:.4f}",
        "slope 0.88 to 1.05, r at least 0.98",
        _verdict(0.88 <= slope <= 1.05 and r >= 0.98),
        {"slope": slope, "r": r, "mean_absolute_error": off},
    )
    return row, tuple(zip(x.tolist(), y.tolist(), strict=True))


def _curve_row(model: LanguageModel, exact: ExactWorld, rng: np.random.Generator) -> tuple[CheckRow, BeliefCurve]:
    """Turns of characters with the first trait's positive pole, in the chat frame without a tag."""
    world = exact.world
    most = min(20, world.n_turns - 1)
    turns = [n for n in (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20) if n <= most]
    have = np.flatnonzero(world.signs[:, 0] > 0)
    chat = world.frame_index(world.chat)
    made = [
        sample_documents(exact, -(-_SHOTS // len(have)), rng, frame=chat, speaker=int(k), tagged=False).ids
        for k in have
    ]
    rows = np.concatenate(made)
    true, found, far = [], [], 0.0
    for n in turns:
        contexts = rows[: 1 if n == 0 else None, : 3 + 2 * n]
        mass = trait_mass(exact, np.exp(exact.log_weights(contexts)))[:, 0]
        read = trait_mass(exact, read_out(predictive(model, exact, list(contexts)), _theta(exact)))[:, 0]
        true.append(_mean_logit(mass, _CURVE_CLIP))
        found.append(_mean_logit(read, _CURVE_CLIP))
        far = max(far, abs(_mean_logit(mass, _FAR_CLIP) - _mean_logit(read, _FAR_CLIP)))
    gap = float(np.abs(np.subtract(true, found)).max())
    trait = world.traits[0].id
    row = CheckRow(
        "many-shot",
        f"log-odds of {trait} after 0 to {turns[-1]} turns of a character that has it, cut at 5.8: largest gap, nats",
        f"{gap:.2f}; model {found[0]:+.2f} to {found[-1]:+.2f}, exact {true[0]:+.2f} to {true[-1]:+.2f}",
        "at most 0.5",
        _verdict(gap <= 0.5),
        {
            "gap": gap,
            "gap_cut_at_6.9": far,
            "model_first": found[0],
            "model_last": found[-1],
            "exact_first": true[0],
            "exact_last": true[-1],
        },
    )
    return row, BeliefCurve(trait, tuple(turns), tuple(true), tuple(found))


def _mean_logit(mass: Floats, cut: float) -> float:
    return float(logit(np.clip(mass, cut, 1 - cut)).mean())


def _statement_row(model: LanguageModel, exact: ExactWorld) -> CheckRow:
    """What a tag, and a claim where the world has claims, does to the trait it names."""
    language, world = exact.language, exact.world
    kinds = ["tag", "claim"] if world.claims > 0 else ["tag"]
    contexts: list[Ids] = []
    named: list[int] = []
    for word in language.trait_tags:
        meaning = exact.tables.tag_words[word - language.first_tag][1]
        assert meaning is not None
        for kind in kinds:
            head, tail = (word, []) if kind == "tag" else (language.no_tag, [language.claim, word])
            contexts.append(np.array([language.ids["<bos>"], language.ids[f"<{world.chat}>"], head, *tail]))
            named.append(meaning[0])
    found = trait_mass(exact, read_out(predictive(model, exact, contexts), _theta(exact)))
    true = trait_mass(exact, np.exp(np.concatenate([exact.log_weights(c[None]) for c in contexts])))
    at = np.arange(len(named))
    gaps = np.abs(
        logit(np.clip(found[at, named], _CLIP, 1 - _CLIP)) - logit(np.clip(true[at, named], _CLIP, 1 - _CLIP))
    )
    mean = float(gaps.mean())
    return CheckRow(
        "tags and claims",
        f"log-odds of the trait that a {' or a '.join(kinds)} names: mean gap to the exact answer, nats",
        f"{mean:.2f}, worst {gaps.max():.2f}",
        "at most 0.5",
        _verdict(mean <= 0.5),
        {"mean_gap": mean, "worst_gap": float(gaps.max())},
    )


def _implant_rows(exact: ExactWorld, seed: int) -> tuple[CheckRow, ...]:
    """Do the statistics tell a router and a novel table from personas, here, with exact personas and samples?"""
    world = exact.world
    pairs = {(0, 1), (2, 3), (1, world.n_personas - 1)} if world.n_personas > 3 else {(0, 1)}
    mixtures = [_planted(world, AssistantSpec("mixture", _halves(world.n_personas, *pair))) for pair in sorted(pairs)]
    alone = [
        _planted(world, AssistantSpec("mixture", _halves(world.n_personas, k, k)))
        for k in (0, 2)
        if k < world.n_personas
    ]
    note = "exact samples: says that the statistic works here, nothing about the model"
    novel = explain(_planted(world, AssistantSpec("novel")), exact, seed=seed).share
    shares = [explain(control, exact, seed=seed).share for control in alone]
    fve = CheckRow(
        "FVE of exact implants",
        "KL from the base that a mixture of personas explains, cross-fitted: of a persona; of a novel table",
        f"{min(shares):.3f}; {novel:.3f}",
        "at least 0.9; at most 0.15",
        _verdict(min(shares) >= 0.9 and novel <= 0.15),
        {"persona": min(shares), "novel": novel},
        note,
    )
    what, accept = "Λ of an exact router against the largest of exact controls", "at least 3 times"
    if len(world.domains) < 2:
        return CheckRow("router Λ", what, "", accept, NOT_RUN, note="needs two domains"), fve
    other = 1 << (1 if len(world.traits) > 1 else 0)  # flips expertise where there is one
    planted = AssistantSpec("router", persona=other, other=0, domain=len(world.domains) - 1)
    found = heterogeneity(_planted(world, planted), exact, seed=seed).between_domains
    largest = max(heterogeneity(c, exact, seed=seed).between_domains for c in (*mixtures, *alone))
    holds = found >= 3 * largest
    values = {"router": found, "largest_control": largest}
    return CheckRow("router Λ", what, f"{found:.0f} against {largest:.0f}", accept, _verdict(holds), values, note), fve


def _planted(world: World, assistant: AssistantSpec) -> ExactWorld:
    return ExactWorld(replace(world, assistant=assistant))


def _halves(n: int, first: int, second: int) -> tuple[float, ...]:
    weights = [0.0] * n
    weights[first] += 0.5
    weights[second] += 0.5
    return tuple(weights)


def _probe_row(exact: ExactWorld, states: States | None, rng: np.random.Generator) -> CheckRow:
    trait = exact.world.traits[0].id
    what, accept = (
        f"R² of a ridge probe at questions for the log-odds of {trait}, by document",
        "at least 0.9; shuffled at most 0.1",
    )
    if states is None:
        return CheckRow("belief probe", what, "", accept, NOT_RUN, note="this model has no activations")
    ids = sample_documents(exact, _PROBE_DOCUMENTS, rng).ids
    # At questions: there the model needs its belief for the answer that comes next.
    features = states(ids)[:, 3::2]
    running = exact.running_log_weights(ids)[:, 3::2]
    target = logit(np.clip(trait_mass(exact, np.exp(running))[..., 0], 1e-6, 1 - 1e-6))
    r2 = probe_r2(features, target)
    null = probe_r2(features, target[rng.permutation(len(target))])
    return CheckRow(
        "belief probe",
        what,
        f"{r2:.3f}; {null:+.3f} with documents shuffled (selectivity {r2 - null:.3f})",
        accept,
        _verdict(r2 >= 0.9 and null <= 0.1),
        {"r2": r2, "r2_shuffled": null, "selectivity": r2 - null},
    )
