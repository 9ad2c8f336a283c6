"""What calibration found for a model and a cast: the power eta, and how well labelled conversations are told.

Not here: how it is fitted (`protocols.calibrate`) or kept (`running.calibrations`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PersonaRecall:
    """One persona's labelled conversations.

    Attributes:
        persona: Its id.
        n: Conversations.
        right: Of them given to it.
        taken_for: The others, by the persona they were given to.
    """

    persona: str
    n: int
    right: int
    taken_for: dict[str, int]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Figures on conversations that had no part in the fit they are judged by: each half tests the other's eta.

    Attributes:
        accuracy: Share given to the persona that spoke.
        chance: One over the number of personas.
        log_loss, log_loss_uniform: Nats a conversation; the latter for knowing nothing.
        cllr, cllr_min: Bits; see `inference.calibration.cllr`.
        slope, slope_low, slope_high: Reliability slope and its 90% interval; 1 is calibrated.
        error, error_low, error_high: Expected calibration error and its 90% interval.
    """

    accuracy: float
    chance: float
    log_loss: float
    log_loss_uniform: float
    cllr: float
    cllr_min: float
    slope: float
    slope_low: float
    slope_high: float
    error: float
    error_low: float
    error_high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """All that `calibrate` found.

    Attributes:
        model, cast: Their names.
        eta: The power to use: fitted, then shrunk until intervals cover.
        eta_fitted, eta_low, eta_high: Fitted to all labels, with its 90% interval.
        coverage: Of 90% intervals of class weights at `eta`, on files made of the labelled conversations.
        covered: Whether that is as much as it should be.
        n_conversations, n_turns, n_tokens: What it rests on; tokens are those scored.
        n_silent: Conversations without any reply, left out.
        n_paraphrases: Paraphrases of each persona that scored; the others were held out and spoke.
        held_out: Figures on held-out conversations.
        recall: Persona by persona.
        classes: Personas that cannot be told apart, as lists of two or more.
        merged: Whether there were enough conversations of each persona to look for such classes.
        notes: Sentences a reader must know.
    """

    model: str
    cast: str
    eta: float
    eta_fitted: float
    eta_low: float
    eta_high: float
    coverage: float
    covered: bool
    n_conversations: int
    n_turns: int
    n_tokens: int
    n_silent: int
    n_paraphrases: int
    held_out: HeldOut
    recall: tuple[PersonaRecall, ...]
    classes: tuple[tuple[str, ...], ...]
    merged: bool
    notes: tuple[str, ...] = ()
