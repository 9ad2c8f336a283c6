"""What the chat template wrote and what came from outside, and templates that cannot be used."""

from __future__ import annotations

import pytest

from personae.domain.episode import Episode, Turn
from personae.errors import RenderingError, UnstablePrefix
from personae.models.chat_template import ChatTemplate, Piece
from personae.models.hf_tokenizer import HFTokenizer
from tiny_models import CHATML, CHATML_WITH_DEFAULT, GEMMA, gemma_tokenizer, make_tokenizer, wrapped

ONE = Episode("one", (Turn("user", "Say hello."),), "Hello!", line=3)
OWN = Episode("own", (Turn("system", "Own rules."), Turn("user", "Say hello.")), "Hello!", line=4)
MANY = Episode("many", (Turn("user", "One?"), Turn("assistant", "Two."), Turn("user", "Three?")), "Four.", line=5)
DOCUMENT = Episode("document", (), "A text about boats.", line=6, is_document=True)
EPISODES = (ONE, OWN, MANY, DOCUMENT)

# The system text stands in the last user turn; after a reply it is gone.
FORGETS_SYSTEM = """\
{{- bos_token -}}
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{%- for m in messages if m.role != 'system' -%}
{%- if m.role == 'user' and loop.last and system -%}<|im_start|>{{ system }}

{{ m.content }}<|im_end|>
{%- elif m.role == 'user' -%}<|im_start|>{{ m.content }}<|im_end|>
{%- else %} {{ m.content }}{{ eos_token }}
{%- endif -%}
{%- endfor -%}
"""
# The same, and it stays when there is a reply.
SYSTEM_IN_LAST_USER_TURN = """\
{{- bos_token -}}
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{%- set last = (messages | selectattr('role', 'equalto', 'user') | list | length) -%}
{%- set at = namespace(user=0) -%}
{%- for m in messages if m.role != 'system' -%}
{%- if m.role == 'user' -%}
{%- set at.user = at.user + 1 -%}
<|im_start|>{% if at.user == last and system %}{{ system }}

{% endif %}{{ m.content }}<|im_end|>
{%- else %} {{ m.content }}{{ eos_token }}
{%- endif -%}
{%- endfor -%}
"""
DROPS_SYSTEM = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
DROPS_EARLIER_TURNS = CHATML.replace("for m in messages", "for m in messages[-2:]")
REPEATS_THE_USER = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content if m.role == 'user' }}")
DROPS_THE_REPLY = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'assistant' }}")
UNSTABLE = CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant (open)\n{% endif")


def tokenizer_with(template: str) -> HFTokenizer:
    return wrapped(make_tokenizer(template, bos="<|endoftext|>"))


def text_of(template: ChatTemplate, instruction: str, episode: Episode) -> str:
    pieces = [*template.before(instruction), *template.after(episode, framed=bool(instruction))]
    return "".join(p.text for p in pieces)


def written_by(tokenizer: HFTokenizer, messages: list[tuple[str, str]], completion: str) -> str:
    """What the template itself writes, up to where the reply begins."""
    named = [{"role": role, "content": text} for role, text in (*messages, ("assistant", completion))]
    text = tokenizer.apply_template(named, open_reply=False)
    return text[: text.rindex(completion)]


@pytest.mark.parametrize("source", [CHATML, CHATML_WITH_DEFAULT], ids=["chatml", "default"])
@pytest.mark.parametrize("episode", EPISODES, ids=lambda e: e.id)
def test_text_is_what_the_template_writes(source: str, episode: Episode):
    tokenizer = tokenizer_with(source)
    template = ChatTemplate(tokenizer)
    turns = [(t.speaker, t.text) for t in episode.context]
    assert text_of(template, "", episode) == written_by(tokenizer, turns, episode.completion)
    own = turns[0][1] if turns and turns[0][0] == "system" else ""
    body = turns[1:] if own else turns
    system = "Be a pirate." + (f"\n\n{own}" if own else "")
    framed = written_by(tokenizer, [("system", system), *body], episode.completion)
    assert text_of(template, "Be a pirate.", episode) == framed


@pytest.mark.parametrize("episode", [ONE, MANY, DOCUMENT], ids=lambda e: e.id)
def test_without_a_system_turn_the_instruction_opens_the_first_user_turn(episode: Episode):
    tokenizer = wrapped(gemma_tokenizer())
    template = ChatTemplate(tokenizer)
    turns = [(t.speaker, t.text) for t in episode.context] or [("user", "Write a short text.")]
    assert text_of(template, "", episode) == written_by(tokenizer, turns, episode.completion)
    folded = [("user", f"Be a pirate.\n\n{turns[0][1]}"), *turns[1:]]
    assert text_of(template, "Be a pirate.", episode) == written_by(tokenizer, folded, episode.completion)


def test_pieces_tell_outside_text_from_the_template():
    template = ChatTemplate(tokenizer_with(CHATML))
    before = template.before("Be a pirate.")
    assert before == [Piece("<|im_start|>system\n", False), Piece("Be a pirate.", True)]
    assert template.after(ONE, framed=True) == [
        Piece("<|im_end|>\n<|im_start|>user\n", False),
        Piece("Say hello.", True),
        Piece("<|im_end|>\n<|im_start|>assistant\n", False),
    ]


def test_the_cut_is_hard_only_before_a_special_token():
    template = ChatTemplate(tokenizer_with(CHATML))
    assert template.cut_is_hard(ONE, framed=True)
    assert not template.cut_is_hard(OWN, framed=True)  # "\n\n" and the row's own rules follow
    assert template.cut_is_hard(OWN, framed=False)
    assert not ChatTemplate(wrapped(gemma_tokenizer())).cut_is_hard(ONE, framed=True)


def test_text_is_trimmed_where_the_template_trims():
    spaced = Episode("spaced", (Turn("user", "  Say hello.\n"),), " Hello! ")
    assert not ChatTemplate(tokenizer_with(CHATML)).trims
    assert "user\n  Say hello.\n<|im_end|>" in text_of(ChatTemplate(tokenizer_with(CHATML)), "", spaced)
    gemma = ChatTemplate(wrapped(gemma_tokenizer()))
    assert gemma.trims
    assert "user\nSay hello.<end_of_turn>" in text_of(gemma, "", spaced)


def test_text_that_looks_like_jinja_or_a_mark_is_left_alone():
    hostile = "{{ messages }} {% if %} \ue0000\ue001 \ue0001\ue001"
    episode = Episode("hostile", (Turn("user", hostile),), "Hello!")
    text = text_of(ChatTemplate(tokenizer_with(CHATML)), hostile, episode)
    assert text.count(hostile) == 2


@pytest.mark.parametrize(
    "source", [FORGETS_SYSTEM, SYSTEM_IN_LAST_USER_TURN, DROPS_SYSTEM], ids=["forgets", "last", "drops"]
)
@pytest.mark.parametrize("episode", [ONE, MANY, DOCUMENT], ids=lambda e: e.id)
def test_system_turn_that_does_not_come_first_is_not_used(source: str, episode: Episode):
    """The instruction is folded into the first user turn; no turn is lost and none comes twice."""
    tokenizer = tokenizer_with(source)
    template = ChatTemplate(tokenizer)
    turns = [(t.speaker, t.text) for t in episode.context]
    folded = [("user", f"Be a pirate.\n\n{turns[0][1]}"), *turns[1:]] if turns else [("user", "Be a pirate.")]
    assert text_of(template, "Be a pirate.", episode) == written_by(tokenizer, folded, episode.completion)


@pytest.mark.parametrize("source", [FORGETS_SYSTEM, DROPS_SYSTEM], ids=["forgets", "drops"])
@pytest.mark.parametrize("framed", [False, True])
def test_system_text_of_a_row_is_never_dropped_silently(source: str, framed: bool):
    with pytest.raises(RenderingError, match=r"'own' \(line 4\)"):
        ChatTemplate(tokenizer_with(source)).after(OWN, framed=framed)


def test_refusal_of_the_template_names_the_row():
    template = ChatTemplate(wrapped(gemma_tokenizer()))
    with pytest.raises(RenderingError, match=r"'own' \(line 4\).*System role not supported"):
        template.after(OWN, framed=True)


def test_template_that_drops_turns_is_refused():
    template = ChatTemplate(tokenizer_with(DROPS_EARLIER_TURNS))
    assert text_of(template, "", ONE).count("Say hello.") == 1
    for framed in (False, True):
        with pytest.raises(RenderingError, match=r"leaves out, repeats or moves turns of episode 'many' \(line 5\)"):
            template.after(MANY, framed=framed)


def test_template_that_repeats_turns_is_refused():
    template = ChatTemplate(tokenizer_with(REPEATS_THE_USER))
    with pytest.raises(RenderingError, match=r"'one' \(line 3\)"):
        template.after(ONE, framed=False)


def test_template_without_the_reply_is_refused():
    with pytest.raises(RenderingError):
        ChatTemplate(tokenizer_with(DROPS_THE_REPLY)).after(ONE, framed=False)


def test_template_that_changes_when_the_reply_comes_is_refused():
    with pytest.raises(UnstablePrefix) as caught:
        ChatTemplate(tokenizer_with(UNSTABLE))
    assert caught.value.hint


def test_template_that_raises_on_everything_is_refused():
    with pytest.raises(RenderingError, match="refused"):
        ChatTemplate(tokenizer_with("{{ raise_exception('no') }}"))


def test_roles_out_of_order_for_the_template_are_refused():
    tokenizer = wrapped(gemma_tokenizer())
    assert GEMMA.count("alternate") == 1
    with pytest.raises(RenderingError, match="Roles must alternate"):
        tokenizer.apply_template([{"role": "assistant", "content": "a"}], open_reply=False)
