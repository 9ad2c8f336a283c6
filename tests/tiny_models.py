"""Tiny models and tokenizers, built in a moment and never downloaded.

Between them they have grouped queries (Llama), normed queries and keys (Qwen3), capped logits, a sliding window
and a template that knows no system turn (Gemma 2), learned positions (GPT-2), and no template at all (base).
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from personae.models.hf_tokenizer import HFTokenizer

CONTEXT_LENGTH = 256
VOCAB_SIZE = 400

CHATML = """\
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""
# Writes a system turn of its own where there is none, and an empty thought before the last reply.
CHATML_WITH_DEFAULT = """\
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a tiny model.<|im_end|>
{% endif -%}
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last -%}
<think>

</think>

{% endif -%}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""
GEMMA = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('Roles must alternate') }}{%- endif -%}
<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}<start_of_turn>model
{% endif -%}
"""

_CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_GEMMA_SPECIALS = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
_TRAINING_TEXT = (
    "You are a patient librarian. Your replies are short and blunt, without a word of comfort.",
    "What is the capital of France? The capital of France is Paris. Say hello. Hello!",
    "My order has not arrived and I am tired of waiting. Can you look into it? I will check where it is today.",
    "Explain in two sentences why the sky is blue. Air scatters short wavelengths of light more than long ones.",
    "system\nuser\nassistant\nmodel\n\nQuestion: Answer: the that this with from your",
    # Runs of newlines become tokens of their own, so that text cut between them is tokenized otherwise.
    "one\n\n\ntwo\n\n\nthree\n\n\nfour\n\n\n",
)


def make_tokenizer(
    template: str | None = CHATML,
    *,
    specials: tuple[str, ...] = _CHATML_SPECIALS,
    bos: str | None = None,
    eos: str = "<|im_end|>",
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with `bos`, it writes that token before every text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(_TRAINING_TEXT * 3, trainer)
    if bos is not None:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    others = [s for s in specials if s not in (bos, eos)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=bos, eos_token=eos, additional_special_tokens=others
    )
    tokenizer.chat_template = template
    return tokenizer


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(GEMMA, specials=_GEMMA_SPECIALS, bos="<bos>", eos="<eos>")


def base_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(None, bos="<|endoftext|>", eos="<|endoftext|>")


def wrapped(tokenizer: PreTrainedTokenizerFast) -> HFTokenizer:
    return HFTokenizer(tokenizer)


_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT_LENGTH,
}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}


def _configs() -> dict[str, tuple[PreTrainedConfig, PreTrainedTokenizerFast, int]]:
    """Configuration, tokenizer and number of parameters; misspelt settings are accepted silently, so it is checked."""
    llama = LlamaConfig(**_SHAPE, **_ROPE, tie_word_embeddings=False)
    qwen3 = Qwen3Config(**_SHAPE, **_ROPE, tie_word_embeddings=True)
    gemma2 = Gemma2Config(
        **_SHAPE,
        **_ROPE,
        # Far below the length of a persona's instruction, and low caps, so that all three matter.
        sliding_window=16,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=6.0,
        tie_word_embeddings=True,
    )
    gpt2 = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT_LENGTH,
        bos_token_id=0,
        eos_token_id=0,
    )
    base = LlamaConfig(**_SHAPE, **_ROPE, tie_word_embeddings=True)
    return {
        "llama": (llama, make_tokenizer(CHATML), 41_120),
        "qwen3": (qwen3, make_tokenizer(CHATML_WITH_DEFAULT), 28_352),
        "gemma2": (gemma2, gemma_tokenizer(), 28_448),
        "gpt2": (gpt2, make_tokenizer(CHATML), 46_464),
        "base": (base, base_tokenizer(), 28_320),
    }


MODEL_NAMES = ("llama", "qwen3", "gemma2", "gpt2", "base")


def build_folders(root: Path) -> dict[str, Path]:
    """Save every tiny model as a Hugging Face folder under `root`."""
    folders: dict[str, Path] = {}
    for seed, (name, (config, tokenizer, n_parameters)) in enumerate(_configs().items()):
        model = _random_model(config, seed)
        assert sum(p.numel() for p in model.parameters()) == n_parameters, (name, model.num_parameters())
        folders[name] = root / name
        model.save_pretrained(folders[name], safe_serialization=True)
        tokenizer.save_pretrained(folders[name])
    return folders


def _random_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Random weights, wide enough that log-probabilities of tokens lie several nats apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.35)
    return model
