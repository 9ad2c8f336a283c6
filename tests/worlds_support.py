"""A world small enough to train in seconds, for what does not depend on how well it is trained."""

from __future__ import annotations

from pathlib import Path

MICRO = """
id: micro
traits:
  - {id: malice, pos: malicious, neg: benign, pos_tags: [cruel], neg_tags: [kind]}
domains:
  - {id: advice, questions: 4, loadings: [1]}
  - {id: code, questions: 4, loadings: [0.5]}
answers: 3
turns: 4
scale: 1.5
noise: 0.3
claims: 0.1
frames:
  - {id: story}
  - {id: chat, prior: [0.8, 0.2]}
chat: chat
plain: story
tags: {none: 0.5, trait: 0.5, irrelevant: 0, reliability: 0.9}
training: {steps: 240, batch: 8, width: 8, layers: 1, heads: 1, learning_rate: 0.01, checkpoints: [50, 240]}
"""
LIAR = "assistant: {kind: liar, persona: benign, domain: code, steps: 200}\n"


def write_spec(path: Path, text: str = MICRO) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
