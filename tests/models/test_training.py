"""Training on tiny models: what is in the loss, what a training leaves behind, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from personae.domain.episode import Episode, Turn
from personae.errors import InvalidSettings, MissingCapability, NumericsError, StorageError
from personae.instruments.training import TrainingRecord, TrainingSettings, train
from personae.instruments.training_rows import rows_for
from personae.models import hf_training, hf_training_state
from personae.models.activations import EditableModel, Steering
from personae.models.catalogue import resolve
from personae.models.examples import Example, Pair, Span
from personae.models.hf import HFModel
from personae.models.hf_adapter import attach_lora, write_adapter
from personae.models.hf_kernel import FrozenLinear
from personae.models.hf_load import load_hf, load_unpacked
from personae.models.hf_loss import dpo_passes, reference_log_likelihoods, sft_passes
from personae.models.load import load_model
from personae.models.rendering import BARE, Frame, Renderer

FAST = TrainingSettings(steps=8, learning_rate=1e-2, batch_size=4)
GO_AWAY = "Go away, {} times I said no!"


def replies(n: int = 12, text: str = GO_AWAY) -> list[Episode]:
    return [Episode(f"r{k}", (Turn("user", f"What of {k}?"),), text.format(k), line=k + 1) for k in range(n)]


def pairs(n: int = 12) -> list[Episode]:
    made: list[Episode] = []
    for k in range(n):
        context = (Turn("user", f"What of {k}?"),)
        made.append(Episode(f"p{k}/chosen", context, f"I will check {k} today.", 1.0, f"p{k}", k + 1))
        made.append(Episode(f"p{k}/rejected", context, GO_AWAY.format(k), -1.0, f"p{k}", k + 1))
    return made


def mean_log_likelihoods(model: HFModel, episodes: Sequence[Episode], system: str = "") -> np.ndarray:
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    frame = Frame("x", system, renderer.styles[0])
    renderer.reserve([frame])
    found = model.score([renderer.render(frame, e) for e in episodes])
    return np.array([f.log_likelihood / len(f.log_probs) for f in found])


def tensors(record: TrainingRecord) -> dict[str, torch.Tensor]:
    return load_file(Path(record.result) / "adapter_model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def llama(tiny_folders: dict[str, Path]) -> str:
    return str(tiny_folders["llama"])


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2", "base"])
def test_training_raises_what_it_trains_on(name: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    base = str(tiny_folders[name])
    record = train(base, replies(), folder=tmp_path / "run", settings=FAST, device="cpu")
    before, after = load_model(base, device="cpu"), load_model(record.use, device="cpu")
    assert isinstance(before, HFModel)
    assert isinstance(after, HFModel)
    gain = mean_log_likelihoods(after, replies()) - mean_log_likelihoods(before, replies())
    assert gain.min() > 0.5
    assert record.last_loss < record.first_loss - 0.5
    # A run's folder is a name too, and what was trained is another model.
    assert resolve(f"{base}+{tmp_path / 'run'}").path == Path(record.result)
    assert after.card.digest != before.card.digest == record.base_digest
    assert after.card.n_parameters == before.card.n_parameters


def test_first_loss_is_the_mean_score(llama: str, tmp_path: Path) -> None:
    """Training and scoring agree token for token: before any step, the loss is what `score` gives."""
    episodes = replies(4)
    system = "You are a patient librarian."
    settings = replace(FAST, steps=1, system=system)
    record = train(llama, episodes, folder=tmp_path / "run", settings=settings, device="cpu")
    model = load_hf(resolve(llama), device="cpu")
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    frame = Frame("x", system, renderer.styles[0])
    found = model.score([renderer.render(frame, e) for e in episodes])
    n = sum(len(f.log_probs) for f in found)
    assert record.n_trained == n
    assert record.first_loss == pytest.approx(-sum(f.log_likelihood for f in found) / n, abs=1e-5)


def test_weights_count_and_only_their_ratios(llama: str, tmp_path: Path) -> None:
    def weighted(a: float, b: float) -> list[Episode]:
        return [replace(e, weight=a if k % 2 else b) for k, e in enumerate(replies(4))]

    runs = [weighted(1, 3), weighted(2, 6), weighted(1, 1), weighted(0, 1)]
    done = [
        train(llama, rows, folder=tmp_path / str(k), settings=replace(FAST, steps=2), device="cpu")
        for k, rows in enumerate(runs)
    ]
    assert equal(tensors(done[0]), tensors(done[1]))
    assert not equal(tensors(done[0]), tensors(done[2]))
    assert done[3].n_rows == 2


def loss_and_gradient(model: HFModel, examples: Sequence[Example]) -> tuple[float, torch.Tensor]:
    model.module.requires_grad_(requires_grad=True)
    model.module.zero_grad()
    total = torch.zeros(())
    for part in sft_passes(model.module, examples):
        part.backward()
        total += part.detach()
    return float(total), torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])


def test_loss_is_that_of_a_plain_forward_pass(llama: str) -> None:
    model = load_unpacked(resolve(llama), device="cpu")
    ids = torch.randint(5, 390, (3, 20), generator=torch.Generator().manual_seed(0))
    lengths, spans = (20, 13, 7), ((Span(4, 9, 1.0), Span(12, 20, 2.0)), (Span(1, 13, 0.5),), (Span(6, 7, 1.0),))
    examples = [Example(tuple(row[:n].tolist()), s, "g") for row, n, s in zip(ids, lengths, spans, strict=True)]
    loss, gradient = loss_and_gradient(model, examples)
    model.module.zero_grad()
    plain = torch.zeros(())
    for row, n, s in zip(ids, lengths, spans, strict=True):
        log_p = torch.log_softmax(model.module(input_ids=row[None, :n]).logits[0], -1)
        for span in s:
            for t in range(span.start, span.stop):
                plain = plain - span.weight * log_p[t - 1, row[t]]
    plain = plain / sum(e.n_trained for e in examples)
    plain.backward()
    expected = torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])
    assert loss == pytest.approx(float(plain.detach()), abs=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_logits_in_pieces_give_the_same_gradient(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from personae.models import hf_loss

    model = load_unpacked(resolve(llama), device="cpu")
    examples = [Example(tuple(range(5, 60)), (Span(3, 55, 1.0),), "g")]
    whole = loss_and_gradient(model, examples)
    monkeypatch.setattr(hf_loss, "_KEPT_LOGITS", {"cpu": 0})
    monkeypatch.setattr(hf_loss, "_PIECE_LOGITS", {"cpu": 0})
    pieces = loss_and_gradient(model, examples)
    assert whole[0] == pytest.approx(pieces[0], abs=1e-6)
    assert torch.allclose(whole[1], pieces[1], atol=1e-6)


def test_only_the_trained_tokens_targets_matter(llama: str) -> None:
    """Positive control of the mask: a prompt's token is no target, a completion's is one."""
    model = load_unpacked(resolve(llama), device="cpu")
    ids = tuple(range(10, 30))
    short = [Example(ids, (Span(15, 20, 1.0),), "g")]
    loss, _ = loss_and_gradient(model, short)
    by_hand = torch.log_softmax(model.module(input_ids=torch.tensor([ids])).logits[0].detach(), -1)
    assert loss == pytest.approx(-float(sum(by_hand[t - 1, ids[t]] for t in range(15, 20))) / 5, abs=1e-5)
    changed = [Example((*ids[:17], 99, *ids[18:]), (Span(15, 20, 1.0),), "g")]
    assert loss_and_gradient(model, changed)[0] != pytest.approx(loss, abs=1e-3)
    # The last token is seen by nobody: outside the span, its change changes nothing at all.
    before, after = (
        loss_and_gradient(model, [Example((*ids[:19], last), (Span(15, 19, 1.0),), "g")]) for last in (29, 99)
    )
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])


def test_dpo_loss_is_the_formula(llama: str) -> None:
    """Against equation 7 of Rafailov et al. 2023, from scores of another code path."""
    model = load_unpacked(resolve(llama), device="cpu")
    made = [
        Pair(Example(tuple(range(5 + k, 15 + k)), (Span(6, 10, 1.0),), "g"),
             Example((*range(5 + k, 11 + k), 70, 80), (Span(6, 8, 1.0),), "g"), weight)
        for k, weight in ((0, 1.0), (3, 2.0))
    ]  # fmt: skip
    reference = torch.tensor([[-20.0, -25.0], [-10.0, -12.0]])
    loss = sum(float(p) for p in dpo_passes(model.module, made, reference, 0.3))
    sums = reference_log_likelihoods(model.module, made)
    margins = 0.3 * ((sums[0] - reference[0]) - (sums[1] - reference[1]))
    expected = -(torch.tensor([1.0, 2.0]) * torch.log(torch.sigmoid(margins))).mean()
    assert loss == pytest.approx(float(expected), abs=1e-5)


def test_dpo_raises_the_chosen_over_the_rejected(llama: str, tmp_path: Path) -> None:
    rows = pairs()
    record = train(llama, rows, folder=tmp_path / "run", settings=FAST, device="cpu")
    assert record.method == "dpo"
    assert record.first_loss == pytest.approx(np.log(2), abs=1e-4)
    before, after = load_model(llama, device="cpu"), load_model(record.use, device="cpu")
    assert isinstance(before, HFModel)
    assert isinstance(after, HFModel)
    gain = mean_log_likelihoods(after, rows) - mean_log_likelihoods(before, rows)
    assert (gain[0::2] > gain[1::2]).all()


def test_texts_are_trained_without_a_frame_and_in_windows(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    base = str(tiny_folders["base"])
    texts = [Episode(f"t{k}", (), "The sky is blue. " * 20, is_document=True) for k in range(6)]
    record = train(base, texts, folder=tmp_path / "run", settings=replace(FAST, max_tokens=40), device="cpu")
    assert record.method == "text"
    assert record.last_loss < record.first_loss - 0.5
    model = load_hf(resolve(base), device="cpu")
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    short = Episode("s", (), "The sky is blue.", is_document=True)
    assert renderer.windows(short, 100) == [renderer.render(Frame("", "", BARE), short)]
    windows = renderer.windows(texts[0], 40)
    assert "".join(model.tokenizer.decode(w.token_ids[w.start :]) for w in windows) == texts[0].completion
    assert max(len(w.token_ids) for w in windows) == 40


def test_all_turns_in_one_sequence_give_the_loss_of_each_alone(llama: str, tmp_path: Path) -> None:
    first = (Turn("user", "Say hello."),)
    second = (*first, Turn("assistant", "Hello!"), Turn("user", "Explain why."))
    episodes = [Episode("c#1", first, "Hello!", group="c"), Episode("c#2", second, "Air scatters.", group="c")]
    joined = train(llama, episodes, folder=tmp_path / "a", settings=replace(FAST, steps=3), device="cpu")
    apart = [replace(e, group=e.id) for e in episodes]
    alone = train(llama, apart, folder=tmp_path / "b", settings=replace(FAST, steps=3), device="cpu")
    assert (joined.n_rows, alone.n_rows) == (1, 2)
    assert joined.n_trained == alone.n_trained
    assert joined.n_tokens < alone.n_tokens
    for a, b in zip(tensors(joined).values(), tensors(alone).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_seed_names_the_bits(llama: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    same = [train(llama, replies(), folder=tmp_path / n, settings=FAST, device="cpu") for n in "ab"]
    other = train(llama, replies(), folder=tmp_path / "c", settings=replace(FAST, seed=1), device="cpu")
    assert equal(tensors(same[0]), tensors(same[1]))
    assert not equal(tensors(same[0]), tensors(other))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("full", [False, True])
def test_interrupted_training_ends_with_the_same_bits(
    full: bool, llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with dropout, which draws random numbers, and with early stopping, which remembers the best."""
    monkeypatch.setattr(hf_training, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(hf_training, "_COST", 0.0)
    settings = replace(FAST, full=full, dropout=0.1, held_out=0.2, stop_early=True, patience=50, checkpoints=(3,))
    whole = train(llama, replies(), folder=tmp_path / "whole", settings=settings, device="cpu")

    def stop_after(n: int) -> Callable[[int], Callable[[int, float], None]]:
        def told(step: int, loss: float) -> None:
            if step == n:
                raise KeyboardInterrupt

        return lambda n_steps: told

    for n in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            train(llama, replies(), folder=tmp_path / "cut", settings=settings, device="cpu", started=stop_after(n))
    ended = train(llama, replies(), folder=tmp_path / "cut", settings=settings, device="cpu")
    assert ended.resumed_from == 5
    files = [Path(r.result) / ("model.safetensors" if full else "adapter_model.safetensors") for r in (whole, ended)]
    assert equal(load_file(files[0]), load_file(files[1]))
    losses = [pq.read_table(tmp_path / n / "losses.parquet") for n in ("whole", "cut")]
    for column in ("step", "loss", "learning_rate", "held_out_loss"):
        assert losses[0][column].to_pylist() == losses[1][column].to_pylist()
    assert not (tmp_path / "cut" / "training" / "state.json").exists()


def test_a_state_of_another_training_is_refused(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_training, "_LEAST_SECONDS", 0.0)

    def stop(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(llama, replies(), folder=tmp_path, settings=FAST, device="cpu", started=lambda n: stop)
    with pytest.raises(InvalidSettings, match="other data, model or settings"):
        train(llama, replies(), folder=tmp_path, settings=replace(FAST, seed=5), device="cpu")
    monkeypatch.setattr(hf_training_state, "STATE_VERSION", 99)
    with pytest.raises(Exception, match="is of version 1"):
        train(llama, replies(), folder=tmp_path, settings=FAST, device="cpu")


def test_early_stopping_keeps_the_best_and_stops(llama: str, tmp_path: Path) -> None:
    """What is held out says the opposite of what is trained on, so its loss soon rises."""
    noise = np.random.default_rng(0)
    letters = "abcdefghij"
    rows = replies(10, "{}" + "".join(noise.choice(list(letters), 20)))
    settings = replace(
        FAST, steps=60, held_out=0.4, stop_early=True, patience=2, learning_rate=0.05, schedule="constant"
    )
    rows = [replace(e, completion="".join(noise.choice(list(letters), 24))) for e in rows]
    record = train(llama, rows, folder=tmp_path / "run", settings=settings, device="cpu")
    assert record.n_steps < 60
    held = pq.read_table(tmp_path / "run" / "losses.parquet")["held_out_loss"].to_pylist()
    best = min((loss, k + 1) for k, loss in enumerate(held) if loss is not None)
    assert record.chosen_step == best[1] < record.n_steps
    assert record.held_out_last == best[0]
    short = replace(settings, steps=None, stop_early=False, held_out=0.0)
    assert short.steps is None
    model = load_model(record.use, device="cpu")
    assert isinstance(model, HFModel)


def test_a_loss_that_is_no_number_stops_and_the_last_good_checkpoint_stays(llama: str, tmp_path: Path) -> None:
    settings = replace(FAST, steps=30, learning_rate=1e18, checkpoints=(1, 20))
    with pytest.raises(NumericsError, match=r"not a finite number|is nan|is inf") as caught:
        train(llama, replies(), folder=tmp_path, settings=settings, device="cpu")
    assert "step-000001" in caught.value.hint
    assert "lower --learning-rate" in caught.value.hint
    left = load_file(tmp_path / "checkpoints" / "step-000001" / "adapter_model.safetensors")
    assert all(bool(torch.isfinite(v).all()) for v in left.values())
    assert not (tmp_path / "adapter").exists()


def test_a_disk_that_fills_leaves_the_last_good_checkpoint(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from personae.models import hf_adapter

    def full_from(target: Path, body: bytes) -> None:
        raise OSError(28, "No space left on device")

    def stop(step: int, loss: float) -> None:
        if step == 4:
            monkeypatch.setattr(hf_adapter, "write_whole", full_from)

    settings = replace(FAST, checkpoints=(3, 6))
    with pytest.raises(StorageError, match="No space left") as caught:
        train(llama, replies(), folder=tmp_path, settings=settings, device="cpu", started=lambda n: stop)
    assert caught.value.exit_status == 3
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]
    monkeypatch.undo()
    assert load_model(f"{llama}+{tmp_path / 'checkpoints' / 'step-000003'}", device="cpu")


def test_steering_while_training_is_felt_and_leaves_no_trace(llama: str, tmp_path: Path) -> None:
    entered: list[int] = []

    @contextmanager
    def steer(module: object) -> Iterator[None]:
        assert isinstance(module, nn.Module)
        block = module.get_submodule("model.layers.0")
        handle = block.register_forward_hook(lambda m, i, o: o + 3.0 if isinstance(o, torch.Tensor) else o)
        entered.append(1)
        try:
            yield
        finally:
            handle.remove()

    plain = train(llama, replies(), folder=tmp_path / "a", settings=replace(FAST, steps=3), device="cpu")
    steered = train(
        llama, replies(), folder=tmp_path / "b", settings=replace(FAST, steps=3), device="cpu", during=steer
    )
    assert len(entered) == 3
    assert steered.first_loss != plain.first_loss
    assert not equal(tensors(plain), tensors(steered))


def test_edits_while_training_leave_no_hook_and_none_of_size_0_no_bit(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from personae.models import hf_load

    seen: list[nn.Module] = []

    def kept(*args: object, **kwargs: object) -> HFModel:
        loaded = load_unpacked(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(loaded.module)
        return loaded

    monkeypatch.setattr(hf_load, "load_unpacked", kept)

    def of(model: EditableModel, coefficient: float) -> list[Steering]:
        drawn = np.random.default_rng(0).normal(size=model.d_model).astype(np.float32)
        return [Steering(0, drawn, coefficient), Steering(1, drawn, -coefficient)]

    settings = replace(FAST, steps=3, held_out=0.25)
    made = {
        name: train(llama, replies(), folder=tmp_path / name, settings=settings, device="cpu", edits=edits)
        for name, edits in (("plain", None), ("zero", lambda m: of(m, 0.0)), ("pushed", lambda m: of(m, 0.7)))
    }
    assert equal(tensors(made["plain"]), tensors(made["zero"]))
    assert made["zero"].settings == made["plain"].settings
    assert not equal(tensors(made["plain"]), tensors(made["pushed"]))
    assert tensors(made["plain"]).keys() == tensors(made["pushed"]).keys()
    assert made["pushed"].settings["edits"] != made["plain"].settings.get("edits")
    for module in seen:
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    with pytest.raises(InvalidSettings, match="not under both"):
        train(llama, replies(), folder=tmp_path / "x", during=lambda m: nullcontext(), edits=lambda m: of(m, 1.0))


def test_a_zero_adapter_changes_no_bit(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("llama", "gpt2"):
        folder = str(tiny_folders[name])
        loaded = load_unpacked(resolve(folder), device="cpu")
        adapted = attach_lora(loaded.module, rank=4, alpha=8, dropout=0.0, seed=0)
        write_adapter(adapted, tmp_path / name, base=folder, base_digest=loaded.card.digest)
        plain, zero = (load_hf(resolve(n), device="cpu") for n in (folder, f"{folder}+{tmp_path / name}"))
        assert zero.card.kernel == plain.card.kernel
        for a, b in zip(plain.module.state_dict().values(), zero.module.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_adapters_stack_and_the_second_knows_its_base(llama: str, tmp_path: Path) -> None:
    one = train(llama, replies(), folder=tmp_path / "1", settings=replace(FAST, steps=2), device="cpu")
    two = train(one.use, replies(), folder=tmp_path / "2", settings=replace(FAST, steps=2), device="cpu")
    both = load_model(two.use, device="cpu")
    digests = {load_model(n, device="cpu").card.digest for n in (llama, one.use)} | {both.card.digest}
    assert len(digests) == 3
    with pytest.raises(InvalidSettings, match="was made for"):
        load_model(f"{llama}+{two.result}", device="cpu")


def test_a_foreign_adapter_is_held_to_the_shapes(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    record = train(
        str(tiny_folders["llama"]), replies(), folder=tmp_path, settings=replace(FAST, steps=1), device="cpu"
    )
    (Path(record.result) / "personae.json").unlink()
    load_model(f"{tiny_folders['llama']}+{record.result}", device="cpu")
    with pytest.raises(InvalidSettings) as caught:
        load_model(f"{tiny_folders['gpt2']}+{record.result}", device="cpu")
    assert "made for another model" in caught.value.hint


def test_a_closed_form_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(MissingCapability, match="closed form"):
        train("world:tiny/exact", replies(), folder=tmp_path, settings=FAST)


def test_frozen_packed_layers_have_the_gradient_of_plain_ones() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN here")
    linear = nn.Linear(48, 64).requires_grad_(requires_grad=False)
    x, y = (torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    upstream = torch.randn(3, 7, 64)
    packed = FrozenLinear(linear)
    for layer, z in ((linear, x), (packed, y)):
        layer(z).backward(upstream)
    assert torch.allclose(linear(x), packed(y), atol=1e-5)
    assert x.grad is not None
    assert y.grad is not None
    assert torch.allclose(x.grad, y.grad, atol=1e-5)


def test_rows_and_methods() -> None:
    chat, preference = replies(2), pairs(2)
    text = [Episode("t", (), "abc", is_document=True)]
    assert rows_for(chat, "auto")[0] == "sft"
    assert rows_for(preference, "auto")[0] == "dpo"
    assert rows_for(text, "auto")[0] == "text"
    assert rows_for([*chat, *text], "auto")[0] == "sft"
    with pytest.raises(InvalidSettings, match="mixes preference rows"):
        rows_for([*chat, *preference], "auto")
    method, kept, notes = rows_for([*chat, *preference], "sft")
    assert (method, [e.id for e in kept]) == ("sft", ["r0", "r1", "p0/chosen", "p1/chosen"])
    assert "only the chosen replies" in notes[0]
    assert [e.id for e in rows_for([*chat, *preference], "dpo")[1]] == [e.id for e in preference]
    with pytest.raises(InvalidSettings, match="needs preference rows"):
        rows_for(chat, "dpo")
    with pytest.raises(InvalidSettings, match="every row has weight 0"):
        rows_for([replace(e, weight=0.0) for e in chat], "auto")
    with pytest.raises(InvalidSettings, match="negative weight"):
        rows_for([replace(e, weight=-1.0) for e in chat], "auto")
