"""`profile --labels N`: the scorer speaks as every persona, so that whom it favours is known. Not here: formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from personae.cli.profile_inputs import Brief, Panel, ProfileOptions
from personae.cli.workbench import announced
from personae.domain.persona import BACKGROUND
from personae.domain.probe_prompt import spread
from personae.instruments.speaking import Interview, SpeakingModel
from personae.models.catalogue import home
from personae.protocols.favour import Known, hear_known
from personae.running.progress import progress_bar

_SEED = 104_729  # labelled conversations are other ones than the target's


def known_speakers(options: ProfileOptions, brief: Brief, panel: Panel) -> Known:
    """Hold and score `--labels` conversations of every persona and of the scorer as it is.

    Raises:
        InputError: If a persona says nothing.
        ContextOverflow: If a prompt does not fit.
    """
    bench = panel.scorer
    assert bench is not None
    prompts = spread(brief.prompts, options.labels)
    who = [c for c in panel.judge.components if c.id != BACKGROUND]
    said = []
    with progress_bar("Known speakers", len(who) * len(prompts), quiet=options.quiet, unit="conversations") as told:

        def started(turns: int) -> Callable[[int], None]:
            return lambda done: None

        for k, component in enumerate(who):
            system = brief.held_out.get(component.id, ("",))[-1]
            speaker = SpeakingModel(bench.model, bench.renderer, bench.space, system=system, name=component.label)
            plan = replace(brief.plan, seed=options.seed + _SEED + k)
            said.append(Interview(speaker, home() / "transcripts").hold(prompts, plan, n_samples=1, started=started))
            told(len(prompts))
    with announced("Scoring known speakers", quiet=options.quiet) as scoring:
        return hear_known(said, panel.judge, started=scoring)
