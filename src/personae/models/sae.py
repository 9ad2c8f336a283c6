"""Sparse autoencoders of a residual stream, as folders that sae-lens writes: what is needed of one, no torch.

    FOLDER/cfg.json                  architecture, d_in, d_sae, metadata.hook_name (before version 6: hook_name)
    FOLDER/sae_weights.safetensors   W_enc, b_enc, W_dec, b_dec and, for jumprelu, threshold

`blocks.12.hook_resid_post` and `model.layers.12` are the output of block 12; `blocks.12.hook_resid_pre` is that of
block 11. Other places (heads, MLPs, the embedding) are refused: personae reads outputs of blocks. Not here: reading
the file (`models.hf_sae`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from personae.errors import IncomparableEvidence, InputError, MissingCapability
from personae.models.activations import Floats32

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_POST = re.compile(r"(?:blocks\.(\d+)\.hook_resid_post|(?:model\.|transformer\.)?(?:layers|h)\.(\d+))")
_PRE = re.compile(r"blocks\.([1-9]\d*)\.hook_resid_pre")


@dataclass(frozen=True, slots=True)
class SaeCard:
    """What an autoencoder is.

    Attributes:
        folder: Where it was read from.
        architecture: As sae-lens calls it: "standard", "topk", "jumprelu", …
        hook_name: Where it was trained.
        layer: 0-based block whose output that is.
        d_in: Width of the stream.
        d_sae: Number of latents.
        model_name: Model that it was trained on, as its trainer called it; may be empty.
        reader: "sae-lens VERSION", or "personae" where that is not installed.
    """

    folder: str
    architecture: str
    hook_name: str
    layer: int
    d_in: int
    d_sae: int
    model_name: str
    reader: str

    def require_fit(self, n_layers: int, d_model: int, model: str) -> None:
        """Check that a model has the place the autoencoder was trained at.

        Raises:
            IncomparableEvidence: If the width differs or the block does not exist.
        """
        if self.d_in != d_model or self.layer >= n_layers:
            raise IncomparableEvidence(
                f"the autoencoder in {self.folder} reads {self.hook_name} of width {self.d_in}; '{model}' has "
                f"{n_layers} blocks of width {d_model}.",
                hint=f"It was trained on {self.model_name or 'another model'}: name that one, or a fine-tune of it.",
            )


class SparseAutoencoder(Protocol):
    """Latents of a residual stream."""

    @property
    def card(self) -> SaeCard:
        """What it is."""
        ...

    @property
    def decoder(self) -> Floats32:
        """What each latent adds to the stream, shape (d_sae, d_in)."""
        ...

    def encode(self, states: Floats32) -> Floats32:
        """Latents of states of shape (n, d_in): shape (n, d_sae), none negative."""
        ...


def open_sae(folder: str | Path) -> SparseAutoencoder:
    """Read an autoencoder, with sae-lens where it is installed.

    Raises:
        InputError: If the folder holds none, or one of another place than a block's output.
        MissingCapability: If its architecture needs sae-lens, which is not installed.
    """
    try:
        from personae.models.hf_sae import read_sae
    except ModuleNotFoundError as error:
        raise MissingCapability(
            f"reading an autoencoder needs the package '{error.name}', which is not installed.",
            hint="Install it: pip install 'personae[hf,sae]'",
        ) from error
    return read_sae(Path(folder))


def block_of(hook_name: str, path: str) -> int:
    """The block whose output a hook name means.

    Raises:
        InputError: If it means another place.
    """
    if found := _POST.fullmatch(hook_name):
        return int(found[1] or found[2])
    if found := _PRE.fullmatch(hook_name):
        return int(found[1]) - 1
    raise InputError(
        f"it was trained at '{hook_name}', which is not the output of a block",
        path=path,
        hint="Known places: blocks.L.hook_resid_post, blocks.L.hook_resid_pre (L at least 1), model.layers.L.",
    )
