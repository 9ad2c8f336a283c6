"""Reading sparse autoencoders: sae-lens where it is installed, else the three plainest architectures by hand.

This is the only module that imports sae-lens. By hand: standard (relu), topk and jumprelu, without normalised
activations; a test holds both readers to the same latents where sae-lens is there. Not here: what latents mean.
"""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from personae.errors import InputError, MissingCapability, NumericsError
from personae.models.activations import Floats32
from personae.models.sae import CONFIG, WEIGHTS, SaeCard, SparseAutoencoder, block_of

_BY_HAND = ("standard", "topk", "jumprelu")
_ROWS = 1024


def read_sae(folder: Path, *, by_hand: bool = False) -> SparseAutoencoder:
    """See `models.sae.open_sae`; `by_hand` leaves sae-lens aside also where it is installed."""
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise InputError(
            f"it holds no {CONFIG} and {WEIGHTS}", path=str(folder), hint="Name a folder that sae-lens has written."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        about = config.get("metadata") or {}
        hook = str(about.get("hook_name") or config.get("hook_name") or config["hook_point"])
        architecture = str(config.get("architecture", "standard"))
        sizes = int(config["d_in"]), int(config["d_sae"])
        model = str(about.get("model_name") or config.get("model_name") or "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"it is no description of an autoencoder: {error!r}", path=str(path)) from error
    layer = block_of(hook, str(path))
    version = None if by_hand else _sae_lens()
    reader = f"sae-lens {version}" if version else "personae"
    card = SaeCard(str(folder), architecture, hook, layer, *sizes, model, reader)
    return _WithSaeLens(card) if version else _ByHand(card, config)


def _sae_lens() -> str | None:
    return metadata.version("sae-lens") if importlib.util.find_spec("sae_lens") is not None else None


class _Encoder(ABC):
    """Shared by both readers: pieces of rows, and numbers that are numbers."""

    def __init__(self, card: SaeCard, decoder: torch.Tensor) -> None:
        self._card = card
        if tuple(decoder.shape) != (card.d_sae, card.d_in):
            raise InputError(
                f"its decoder has the shape {tuple(decoder.shape)}; ({card.d_sae}, {card.d_in}) was promised",
                path=card.folder,
            )
        self._decoder = decoder.detach().float().numpy()

    @property
    def card(self) -> SaeCard:
        """What it is."""
        return self._card

    @property
    def decoder(self) -> Floats32:
        """See `SparseAutoencoder.decoder`."""
        return self._decoder

    def encode(self, states: Floats32) -> Floats32:
        """See `SparseAutoencoder.encode`."""
        given = torch.tensor(np.ascontiguousarray(states, np.float32))
        with torch.inference_mode():
            parts = [self._latents(piece).to_dense().float() for piece in given.split(_ROWS)]
        found = torch.cat(parts) if parts else torch.zeros((0, self._card.d_sae))
        if not bool(torch.isfinite(found).all()):
            raise NumericsError(f"the autoencoder in {self._card.folder} gave a latent that is not a finite number.")
        return found.numpy()

    @abstractmethod
    def _latents(self, states: torch.Tensor) -> torch.Tensor: ...


class _WithSaeLens(_Encoder):
    """Through sae-lens."""

    def __init__(self, card: SaeCard) -> None:
        from sae_lens import SAE  # pyright: ignore[reportMissingImports]

        try:
            self._sae: Any = SAE.load_from_disk(card.folder, device="cpu", dtype="float32").eval()
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"sae-lens cannot read it: {error}", path=card.folder) from error
        rescaled = bool(getattr(self._sae.cfg, "rescale_acts_by_decoder_norm", False))
        super().__init__(card, _unit_rows(self._sae.W_dec) if rescaled else self._sae.W_dec)

    def _latents(self, states: torch.Tensor) -> torch.Tensor:
        return self._sae.encode(states)


class _ByHand(_Encoder):
    """Without sae-lens."""

    def __init__(self, card: SaeCard, config: Mapping[str, Any]) -> None:
        other = str(config.get("normalize_activations") or "none")
        if card.architecture not in _BY_HAND or other not in ("none", "expected_average_only_in"):
            raise MissingCapability(
                f"the autoencoder in {card.folder} is of the kind '{card.architecture}' with activations "
                f"normalised by '{other}', which only sae-lens reads.",
                hint="Install it: pip install 'personae[sae]'",
            )
        try:
            weights = {k: v.float() for k, v in load_file(Path(card.folder) / WEIGHTS).items()}
            self._enc, self._b_enc, self._b_dec = weights["W_enc"], weights["b_enc"], weights["b_dec"]
            # A latent may be counted in units of the stream, as if its row of the decoder were of length 1.
            self._scale = weights["W_dec"].norm(dim=-1) if config.get("rescale_acts_by_decoder_norm") else None
            decoder = weights["W_dec"]
            self._threshold = weights["threshold"] if card.architecture == "jumprelu" else None
            self._k = int(config["k"]) if card.architecture == "topk" else 0
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"its weights cannot be read: {error!r}", path=card.folder) from error
        shapes = [(self._enc, (card.d_in, card.d_sae)), (self._b_enc, (card.d_sae,)), (self._b_dec, (card.d_in,))]
        shapes += [(self._threshold, (card.d_sae,))] if self._threshold is not None else []
        for found, wanted in shapes:
            if tuple(found.shape) != wanted:
                raise InputError(
                    f"a part of its weights has the shape {tuple(found.shape)}, not {wanted}", path=card.folder
                )
        if not 0 <= self._k <= card.d_sae:
            raise InputError(f"it keeps {self._k} of {card.d_sae} latents", path=card.folder)
        self._subtract = bool(config.get("apply_b_dec_to_input", True))
        super().__init__(card, decoder if self._scale is None else _unit_rows(decoder))

    def _latents(self, states: torch.Tensor) -> torch.Tensor:
        before = (states - self._b_dec if self._subtract else states) @ self._enc + self._b_enc
        if self._threshold is not None:
            return torch.relu(before) * (before > self._threshold)
        if not self._k:
            return torch.relu(before)
        scaled = before if self._scale is None else before * self._scale
        top = scaled.topk(self._k, dim=-1)
        return torch.zeros_like(before).scatter(-1, top.indices, torch.relu(top.values))


def _unit_rows(decoder: torch.Tensor) -> torch.Tensor:
    return decoder / decoder.norm(dim=-1, keepdim=True)
