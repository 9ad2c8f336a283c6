"""A sparse autoencoder of a world's model, trained with sae-lens: does a latent stand for malice, and does it move?

    python -m benchmarks.vectors.autoencoders --folder FOLDER --work FOLDER [--seeds 0 1 2] [--store]

FOLDER holds trained worlds, as `benchmarks.worlds.run` leaves them; sae-lens must be installed. For each seed and block
an autoencoder is trained on the states of documents. On other documents the latent is chosen that tells malicious
speakers best, and judged on a third set: AUROC of its activation at the last question (bar: 0.95, at the block that
seed 0 chose), beside what exact beliefs reach, an untrained autoencoder, the best coordinate of the stream and permuted
speakers.
Then the model is fine-tuned on the answers of a malicious persona to one domain's questions in chats (control: a
benign one), and `compare_latents` says which latents moved on first questions of the other domains.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from benchmarks.environment import write_result
from personae.inference.features import Reading, compare_latents
from personae.models.activations import require_activations
from personae.models.catalogue import ModelSource
from personae.models.hf import HFModel
from personae.models.hf_load import load_hf, load_unpacked
from personae.models.protocol import Scorable
from personae.models.sae import SparseAutoencoder, open_sae
from personae.protocols.world_vectors import WorldStates, world_states
from personae.worlds.exact import ExactWorld
from personae.worlds.reading import read_world

DOCUMENTS = (1500, 400, 400)  # that train an autoencoder, choose its latent, judge it
# Chosen on the second set of seed 0, as is the block: with 48 latents or more, malice is split among combinations.
BLOCK = 0
LATENTS, ACTIVE, SAMPLES, BATCH, LEARNING = 32, 8, 250_000, 512, 4e-3
STEPS, ROWS, RATE = 96, 32, 3e-4
BAR = 0.95


def main() -> None:
    """Run every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--store", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [of_seed(args.folder, args.work, seed) for seed in args.seeds]
    body = {
        "world": "personaworld",
        "sae_lens": metadata.version("sae-lens"),
        "settings": {"latents": LATENTS, "active": ACTIVE, "samples": SAMPLES, "documents": DOCUMENTS, "bar": BAR},
        "least_auroc": min(s["blocks"][BLOCK]["auroc"] for s in found),
        "seeds": found,
    }
    print(json.dumps(body))
    if args.store:
        print(write_result("autoencoders-personaworld", body))


def of_seed(folder: Path, work: Path, seed: int) -> dict[str, Any]:
    """Both blocks of one world."""
    kept = work / f"seed-{seed}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    os.environ["PERSONAE_HOME"] = str(folder / f"seed-{seed}")  # where its kernel was measured
    world = replace(read_world("personaworld").base, seed=seed)
    exact = ExactWorld(world)
    source = ModelSource(
        "world:personaworld/base", "world", folder / f"seed-{seed}" / "worlds" / "personaworld" / "base", world=world
    )
    model = load_hf(source, device="cpu")
    rng = np.random.default_rng([seed, 5])
    train, choose, judge = (world_states(require_activations(model), exact, n, rng) for n in DOCUMENTS)
    blocks, autoencoders = [], []
    for layer in range(model.n_layers):
        made = trained(train.values[:, :, layer], layer, work / f"seed-{seed}-block-{layer}", seed)
        found = planted(made, choose, judge, layer, rng)
        blocks.append(found)
        autoencoders.append(made)
        print(json.dumps({"seed": seed} | found), flush=True)
    moved = {
        name: moves(source, exact, persona, autoencoders[BLOCK], judge, seed)
        for name, persona in (("malicious", _persona(exact, 1)), ("benign", _persona(exact, -1)))
    }
    result = {"seed": seed, "blocks": blocks, "block_compared": BLOCK, "moved": moved}
    work.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(result))
    print(json.dumps(moved), flush=True)
    return result


def trained(states: np.ndarray, layer: int, folder: Path, seed: int) -> SparseAutoencoder:
    """An autoencoder in a folder; trained by sae-lens unless it is there."""
    if not (folder / "cfg.json").is_file():
        from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.sae import SAEMetadata

        torch.manual_seed(seed)
        rows = torch.tensor(states.reshape(-1, states.shape[-1]))
        about = SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post", model_name="world:personaworld/base")
        width = rows.shape[1]
        config = TopKTrainingSAEConfig(
            d_in=width, d_sae=LATENTS, k=ACTIVE, normalize_activations="expected_average_only_in", metadata=about
        )
        how = SAETrainerConfig(
            total_training_samples=SAMPLES,
            train_batch_size_samples=BATCH,
            lr=LEARNING,
            lr_end=LEARNING / 10,
            n_batches_for_norm_estimate=20,
        )

        def batches() -> Iterator[torch.Tensor]:
            generator = torch.Generator().manual_seed(seed)
            while True:
                yield rows[torch.randint(len(rows), (BATCH,), generator=generator)]

        untrained = TopKTrainingSAE(config)
        with torch.no_grad():  # states lie far from 0: without their mean, latents would have to learn it
            untrained.b_dec.copy_(rows.mean(dim=0) * (width**0.5 / rows.norm(dim=1).mean()))
        untrained.save_inference_model(folder.with_name(folder.name + "-untrained"))
        SAETrainer(cfg=how, sae=untrained, data_provider=batches()).fit().save_inference_model(folder)
    return open_sae(folder)


def planted(
    made: SparseAutoencoder, choose: WorldStates, judge: WorldStates, layer: int, rng: np.random.Generator
) -> dict[str, Any]:
    """How well the latent that tells malicious speakers on one set of documents tells them on another."""
    a, b = (s.values[:, -1, layer] for s in (choose, judge))
    latents = [made.encode(v) for v in (a, b)]
    picked = aurocs(latents[0], choose.malicious)
    best = int(picked.argmax())
    untrained = open_sae(Path(made.card.folder).with_name(Path(made.card.folder).name + "-untrained"))
    plain = [untrained.encode(v) for v in (a, b)]
    signed = [np.concatenate([v, -v], axis=1) for v in (a, b)]

    def chosen(first: np.ndarray, second: np.ndarray) -> float:
        return float(aurocs(second[:, [int(aurocs(first, choose.malicious).argmax())]], judge.malicious)[0])

    null = []
    for _ in range(200):
        k = int(aurocs(latents[0], rng.permutation(choose.malicious)).argmax())
        null.append(float(aurocs(latents[1][:, [k]], rng.permutation(judge.malicious))[0]))
    return {
        "block": layer,
        "latent": best,
        "chosen_on": float(picked[best]),
        "auroc": float(aurocs(latents[1][:, [best]], judge.malicious)[0]),
        "exact_beliefs": float(aurocs(judge.log_odds[:, -1:], judge.malicious)[0]),
        "untrained": chosen(*plain),
        "best_coordinate": chosen(*signed),
        "permuted_975": float(np.quantile(null, 0.975)),
        "live": int((latents[1] > 0).any(axis=0).sum()),
        "reader": made.card.reader,
    }


def moves(
    source: ModelSource, exact: ExactWorld, persona: int, made: SparseAutoencoder, judge: WorldStates, seed: int
) -> dict[str, Any]:
    """Fine-tune on a persona's answers to one domain; which latents moved at first questions of the other domains."""
    asked = np.flatnonzero(exact.tables.domain_of != 0)
    contexts = _chats(exact, asked)
    # What stands at a question is read as the token before a reply.
    requests = [Scorable((*map(int, row), int(row[-1])), len(row)) for row in contexts]

    def reading(of: HFModel) -> Reading:
        states = np.stack(of.read(requests, layers=[made.card.layer], reduce="prompt_last"))[:, 0]
        return Reading(made.encode(states), states)

    tuned = load_unpacked(source, device="cpu")
    before = reading(tuned)
    again = reading(tuned)
    _fine_tune(tuned.module, exact, persona, seed)
    after = reading(tuned)
    found = compare_latents(
        before, after, made.decoder, asked.tolist(), rng=np.random.default_rng([seed, 6]), flips=999
    )
    tells = aurocs(made.encode(judge.values[:, -1, made.card.layer]), judge.malicious)
    raised = [m for m in found.moves if m.after > m.before]
    return {
        "raised_most": [asdict(m) | {"auroc_of_malice": float(tells[m.latent])} for m in raised[:3]],
        "malice_change": [m.after - m.before for m in found.moves if m.latent == int(tells.argmax())],
        "n_moved": sum(m.p <= 0.05 for m in found.moves),
        "n_live": found.n_live,
        "explained": found.explained,
        "again_identical": compare_latents(
            before, again, made.decoder, asked.tolist(), rng=np.random.default_rng(0)
        ).identical,
    }


def _fine_tune(module: Any, exact: ExactWorld, persona: int, seed: int) -> None:
    rng = np.random.default_rng([seed, persona])
    asked = rng.choice(np.flatnonzero(exact.tables.domain_of == 0), size=ROWS * STEPS)
    p = np.exp(exact.tables.log_theta[persona, asked])
    said = (p.cumsum(axis=1) < rng.random(len(asked))[:, None] * p.sum(axis=1, keepdims=True)).sum(axis=1)
    prompts = torch.from_numpy(_chats(exact, asked))
    targets = torch.from_numpy(exact.language.answers(asked)[np.arange(len(asked)), said])
    module.requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        rows = slice(step * ROWS, (step + 1) * ROWS)
        loss = torch.nn.functional.cross_entropy(module(input_ids=prompts[rows]).logits[:, -1], targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    module.requires_grad_(requires_grad=False)


def _chats(exact: ExactWorld, asked: np.ndarray) -> np.ndarray:
    """Beginnings of chats that end in a question, without a tag."""
    language = exact.language
    opening = [language.ids["<bos>"], language.id_of(f"<{exact.world.chat}>"), language.no_tag]
    return np.concatenate([np.tile(opening, (len(asked), 1)), language.first_question + asked[:, None]], axis=1)


def _persona(exact: ExactWorld, malice: int) -> int:
    """The first persona of that pole of the first trait."""
    return int(np.flatnonzero(np.sign(exact.world.signs[:, 0]) == malice)[0])


def aurocs(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Of every column."""
    ranks, n, m = rankdata(values, axis=0), int(positive.sum()), len(positive)
    return (ranks[positive].sum(axis=0) - n * (n + 1) / 2) / (n * (m - n))


if __name__ == "__main__":
    main()
