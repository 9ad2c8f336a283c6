"""A screening as JSON and as lines in a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.report.finding import finding
from personae.tables.forecast import UNIT, Screening

_LISTED_EPISODES = 50
_SHOWN = 8


def screening_json(result: Screening, *, report: Path, run: Path) -> dict[str, object]:
    """The contract of `screen --json`: at least what product documentation promises, plain values only."""
    return {
        "command": "screen",
        "data": result.data,
        "model": result.model,
        "cast": result.cast,
        "n_episodes": result.n_episodes,
        "n_tokens": result.n_tokens,
        "unit": UNIT,
        "finding": finding(result),
        "traits": [
            {
                "id": t.id,
                "shift": t.shift,
                "ci": [t.low, t.high],
                "p": t.p,
                "q": t.q,
                "flag": t.flag,
                "n": t.n,
                "direction": t.direction,
                "raw": t.raw,
                "null": [t.null_low, t.null_high],
                "tail": t.tail,
            }
            for t in result.traits
        ],
        "posterior": [
            {"persona": p.persona, "label": p.label, "prior": p.prior, "weight": p.weight, "ci": [p.low, p.high]}
            for p in result.posterior
        ],
        "background": result.background,
        "eta": result.eta,
        "eta_source": result.eta_source,
        "episodes": _episodes(result),
        "forecast": None if result.training is None else result.training.to_dict(),
        "notes": list(result.notes),
        "report": str(report),
        "run": str(run),
    }


def _episodes(result: Screening) -> list[dict[str, object]]:
    """Rows that speak most for the leading trait (each flagged one, in turn), strongest first."""
    ledger = result.ledger
    shown = list(result.flagged) or list(result.traits[:1])
    rows: list[dict[str, object]] = []
    for trait in shown:
        k = ledger.traits.index(trait.id)
        for i in ledger.order_towards(trait)[:_LISTED_EPISODES]:
            rows.append(
                {
                    "id": ledger.episodes[i],
                    "line": int(ledger.line[i]),
                    "trait": trait.id,
                    "llr": float(ledger.llr[i, k]),
                    "excess": float(ledger.excess[i, k]),
                    "z": float(ledger.z[i, k]),
                    "n_tokens": int(ledger.n_tokens[i]),
                }
            )
    return rows


def print_findings(result: Screening, report: Path) -> None:
    """The finding, the strongest traits and personas, the rows to look at, and where the page is."""
    console = Console(highlight=False)
    console.print()
    console.print(Text(finding(result), style="bold"))
    if result.traits:
        console.print()
        console.print(_trait_table(result))
    console.print()
    console.print(_persona_table(result))
    console.print(Text(f"eta {result.eta:.3g}, {result.eta_source}", style="dim"))
    _print_rows(console, result)
    for note in result.notes:
        console.print(Text(f"note: {note}", style="dim"))
    console.print(Text(f"\nReport: {report}"), soft_wrap=True)  # a path cut in two cannot be opened


def _print_rows(console: Console, result: Screening) -> None:
    """The rows that speak most for the pole the file leans to, trait by trait; nats point to that pole."""
    traits = {t.id: t for t in result.traits}
    shown = list(dict.fromkeys(row.trait for row in result.telling))
    for name in shown:
        trait = traits[name]
        console.print(Text(f"\nRows that speak most for '{_printable(trait.leaning)}':"))
        for row in [r for r in result.telling if r.trait == name][: _SHOWN // len(shown)]:
            text = "".join(row.tokens).strip().replace("\n", " ")
            console.print(Text(f"  line {row.line:>5}  {trait.sign * row.llr:+7.1f} nats  {_printable(text)[:90]}"))


def _trait_table(result: Screening) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("trait", "shift", "90% interval", "ordinary", "q", "tail", ""):
        table.add_column(name, justify="left" if name in ("trait", "") else "right", no_wrap=True)
    for t in result.traits[:_SHOWN]:
        table.add_row(
            Text(_printable(t.id)),
            f"{t.shift:+.3f}",
            f"{t.low:+.3f} {t.high:+.3f}",
            f"±{t.null_high:.3f}",
            f"{t.q:.3g}",
            f"{t.tail:.0%}",
            Text(f"leans {_printable(t.leaning)}" if t.flag else ""),
        )
    return table


def _persona_table(result: Screening) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("persona", "weight", "90% interval"):
        table.add_column(name, justify="left" if name == "persona" else "right")
    top = [p for p in result.posterior if p.persona != "background"][:6]
    for p in [*top, *(p for p in result.posterior if p.persona == "background")]:
        table.add_row(Text(_printable(p.label)), f"{p.weight:.1%}", f"{p.low:.1%} to {p.high:.1%}")
    return table


def _printable(text: str) -> str:
    """Control characters from data must not reach the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
