"""Next-token distributions of a transformers model, kept as last hidden states and unfolded when asked for.

A distribution over a vocabulary of 50,000 is 200 kB; the hidden state it is made from is 2 kB. So a request
holds hidden states, and whoever reduces distributions (to KL, to p log q) asks for a few places at a time.
Not here: the forward pass (`models.hf`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class HiddenDistributions:
    """The distributions at the scored places of one request.

    Attributes:
        logits: From last hidden states (n, d_model) to logits (n, vocab_size).
        hidden: Last hidden state before each scored token, shape (n_places, d_model).
    """

    logits: Callable[[Tensor], Tensor]
    hidden: Tensor

    @property
    def n_places(self) -> int:
        """Number of scored tokens."""
        return len(self.hidden)

    def log_probs(self, start: int, stop: int) -> NDArray[np.float32]:
        """Log-probabilities of every token at places start..stop-1, nats, shape (stop - start, vocab_size)."""
        with torch.inference_mode():
            return torch.log_softmax(self.logits(self.hidden[start:stop]), -1).cpu().numpy()
