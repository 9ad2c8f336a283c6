"""Asking a target: order, resumption, empty replies, seeds; any sampler of text is a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from personae.domain.probe_prompt import ProbePrompt
from personae.errors import BackendError, ContextOverflow
from personae.instruments.speaking import Dialogue, Interview, SpeakingModel
from personae.models.exact import ExactModel
from personae.models.protocol import Reply, SamplingPlan
from personae.models.rendering import Renderer
from personae.worlds.reading import read_world


class Parrot:
    """Says how many turns it heard; silent on 'hush', silent at first on 'slow'."""

    def __init__(self, digest: str = "parrot") -> None:
        self.name, self.digest, self.calls, self.n_replies = "parrot", digest, 0, 0
        self._slow_asked = False

    def reply(self, dialogues: Sequence[Dialogue], plan: SamplingPlan) -> list[Reply]:
        self.calls += 1
        self.n_replies += len(dialogues)
        return [Reply(self._say(d, plan.seed)) for d in dialogues]

    def _say(self, dialogue: Dialogue, seed: int) -> str:
        asked = dialogue[-1].text
        if asked == "slow" and not self._slow_asked:
            self._slow_asked = True
            return ""
        return "" if asked == "hush" else f"{len(dialogue)} {asked} {seed}"


PROMPTS = tuple(ProbePrompt(f"p{k}", "t", (f"ask {k}",)) for k in range(20))


def hold(target, root: Path, prompts=PROMPTS, n: int = 1, seed: int = 0):
    return Interview(target, root).hold(
        prompts, SamplingPlan(8, 1.0, seed), n_samples=n, started=lambda turns: lambda done: None
    )


def test_replies_come_in_the_order_of_prompts_with_their_seeds(tmp_path: Path) -> None:
    said = hold(Parrot(), tmp_path, n=2)
    assert [(r.prompt, r.sample) for r in said.replies] == [(p.id, s) for p in PROMPTS for s in (0, 1)]
    assert all(r.text.endswith(str(r.seed)) for r in said.replies)
    assert len({r.seed for r in said.replies}) == 4  # two samples, two chunks


def test_what_was_said_is_kept_and_more_samples_pay_only_for_the_new(tmp_path: Path) -> None:
    first = Parrot()
    one = hold(first, tmp_path)
    again = Parrot()
    two = hold(again, tmp_path, n=2)
    assert again.n_replies == len(PROMPTS)
    assert [r for r in two.replies if r.sample == 0] == list(one.replies)
    assert hold(Parrot(digest="another"), tmp_path).replies == one.replies  # same texts, but asked anew
    assert hold(Parrot(), tmp_path, seed=1).replies != one.replies


def test_a_damaged_piece_is_asked_again(tmp_path: Path) -> None:
    said = hold(Parrot(), tmp_path)
    piece = sorted(tmp_path.rglob("*.json"))[0]
    piece.write_text("{")
    target = Parrot()
    assert hold(target, tmp_path).replies == said.replies
    assert 0 < target.n_replies < len(PROMPTS)


def test_turns_go_on_and_silence_ends_a_conversation(tmp_path: Path) -> None:
    prompts = (
        ProbePrompt("talk", "t", ("one", "two")),
        ProbePrompt("quiet", "t", ("hush", "two")),
        ProbePrompt("late", "t", ("slow",)),
    )
    said = hold(Parrot(), tmp_path, prompts)
    texts = {(r.prompt, r.turn): r.text for r in said.replies}
    assert texts["talk", 1].startswith("3 two")
    assert texts["quiet", 0] == ""
    assert ("quiet", 1) not in texts
    assert texts["late", 0].startswith("1 slow")  # asked once more


def test_a_target_that_says_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="with nothing"):
        hold(Parrot(), tmp_path, (ProbePrompt("a", "t", ("hush",)),))


def test_a_model_as_target_answers_in_its_own_words(tmp_path: Path) -> None:
    model = ExactModel(read_world("tiny").base)
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    question = model.tokenizer.phrases.questions[0]
    speaker = SpeakingModel(model, renderer, "space")
    tagged = SpeakingModel(model, renderer, "space", system=model.tokenizer.phrases.instructions[0])
    said = hold(speaker, tmp_path, (ProbePrompt("q", "t", (question,)),), n=30)
    assert {r.text[: len(question) - 1] for r in said.replies} == {question.rstrip("?")}
    assert all(r.log_prob is not None and r.log_prob < 0 for r in said.replies)
    assert speaker.digest != tagged.digest
    dialogue = hold_turns(question)
    assert speaker.prompt_ids(dialogue) != tagged.prompt_ids(dialogue)
    with pytest.raises(ContextOverflow, match="none of 999"):
        speaker.prompt_ids(dialogue, room=999)


def hold_turns(question: str) -> Dialogue:
    from personae.domain.episode import Turn

    return (Turn("user", question),)
