"""A replay (``recording.replay``) as a table for the console, CSV, Markdown and a small page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cppo_verl import __version__, atomic
from cppo_verl.recording.replay import POSITIONS, Replay, Tally
from cppo_verl.reporting.page import md_table
from cppo_verl.reporting.summary import percent
from cppo_verl.reporting.tables import csv_text
from cppo_verl.reporting.template import STYLE, page

HEADS = (
    "rule",
    "masked",
    "own threshold",
    "prefix budget",
    "A > 0",
    "A < 0",
    "first tenth",
    "last tenth",
    "weight cut",
)
CAPTION = (
    "Shares of all counted tokens; masked = own threshold + prefix budget = A > 0 + A < 0. First and last tenth: of "
    "the tokens in that part of their response. Weight cut: tokens that count with a capped importance weight."
)
OVERLAP = "Tokens that both rules mask, of those that at least one masks."
CAVEAT = (
    "It holds for these tokens: another rule would have moved the policy otherwise, and it would have sampled others."
)
NONE = "–"


@dataclass(frozen=True)
class Told:
    """A replay and what is said around it: ``run``, what was replayed, and notes such as which rules were left out."""

    result: Replay
    run: str
    scope: str
    notes: Sequence[str] = ()

    @property
    def detail(self) -> str:
        """What the shares are shares of."""
        r = self.result
        looks = f" ({r.looks:,} looks)" if r.looks > r.responses else ""
        return (
            f"{self.scope}: {r.tokens:,} counted tokens of {r.responses:,} responses{looks} in {r.groups:,} groups. "
            f"{_agreement(r)}"
        )


def _agreement(result: Replay) -> str:
    ran = next((tally for tally in result.tallies if tally.candidate.ran), None)
    if ran is None or not result.recorded_tokens:
        return ""
    if ran.differs:
        return (
            f"Replay of the rule that ran differs from the recorded gates at {ran.differs:,} of "
            f"{result.recorded_tokens:,} tokens."
        )
    return f"Replay of the rule that ran gives the recorded gate at all {result.recorded_tokens:,} tokens."


def cells(result: Replay, tally: Tally) -> list[str]:
    """A row under ``HEADS``."""
    first, last = (
        percent(tally.by_position[i] / result.by_position[i]) if result.by_position[i] else NONE for i in (0, -1)
    )
    parts = (tally.removed, tally.token, tally.prefix, tally.positive, tally.negative)
    return [
        tally.candidate.name,
        *(percent(result.share(x)) for x in parts),
        first,
        last,
        percent(result.share(tally.capped)),
    ]


def overlap_cells(result: Replay) -> list[list[str]]:
    """A row a rule that masks anything, a cell for each of them."""
    rows = masking(result)
    return [[result.tallies[i].candidate.name, *(_share(result.overlap(i, j)) for j in rows)] for i in rows]


def masking(result: Replay) -> list[int]:
    """Which candidates mask anything."""
    return [i for i, tally in enumerate(result.tallies) if tally.touched]


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f}%"


def text(told: Told) -> str:
    """The table for the console, without the overlaps."""
    rows = [list(HEADS), *(cells(told.result, tally) for tally in told.result.tallies)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([told.detail, "", *lines])


def markdown(told: Told) -> str:
    """Both tables in Markdown."""
    result = told.result
    numbered = [[f"{n}. {row[0]}", *row[1:]] for n, row in enumerate(overlap_cells(result), 1)]
    parts = [
        f"# What each rule would have masked: {told.run}",
        told.detail,
        "\n".join(f"> {note}  " for note in told.notes),
        md_table(HEADS, [cells(result, tally) for tally in result.tallies]),
        CAPTION,
        "## Overlap",
        md_table(["", *(f"{n}" for n in range(1, len(numbered) + 1))], numbered)
        if numbered
        else "No rule masks a token.",
        f"{OVERLAP} {CAVEAT}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def rules_csv(result: Replay) -> str:
    """A row a rule: shares of the counted tokens, of each tenth, and how many gates are not those recorded."""
    heads = ["rule", "loss_mode", "masked", "token_threshold", "prefix_budget", "positive", "negative", "capped"]
    heads += [f"masked_by_position_{i}" for i in range(POSITIONS)] + ["tokens", "differs_from_recorded"]
    rows = []
    for tally in result.tallies:
        shares = [tally.removed, tally.token, tally.prefix, tally.positive, tally.negative, tally.capped]
        by_position = [x / n if n else "" for x, n in zip(tally.by_position, result.by_position, strict=True)]
        name, rule = tally.candidate.name, tally.candidate.rule
        rows.append([name, rule, *map(result.share, shares), *by_position, result.tokens, tally.differs])
    return csv_text([heads, *rows])


def overlap_csv(result: Replay) -> str:
    """A row a pair of rules: tokens that each masks, that both mask, and both of either."""
    rows = []
    for i, one in enumerate(result.tallies):
        for j, other in enumerate(result.tallies[:i]):
            share = result.overlap(i, j)
            names = [other.candidate.name, one.candidate.name]
            rows.append([*names, other.touched, one.touched, int(result.both[i, j]), "" if share is None else share])
    return csv_text([["rule", "other", "masked", "masked_by_other", "masked_by_both", "overlap"], *rows])


def html_page(told: Told) -> str:
    """One self-contained page: shares, a strip of tenths a rule, and the overlaps."""
    result = told.result
    most = max([1e-12, *(x for tally in result.tallies for x in _tenths(result, tally))])
    rows = []
    for tally in result.tallies:
        name, *values = map(escape, cells(result, tally))
        drawn = f"<td class='strip'>{_strip(_tenths(result, tally), most)}</td>"
        rows.append(f"<tr><th scope='row'>{name}</th>{''.join(f'<td>{v}</td>' for v in values)}{drawn}</tr>")
    heads = "".join(f"<th scope='col'>{escape(head)}</th>" for head in (*HEADS, f"by tenth, up to {percent(most)}"))
    notes = "".join(f"<li>{escape(note)}</li>" for note in told.notes)
    return PAGE.substitute(
        style=STYLE + _MORE,
        title=escape(f"What each rule would have masked: {told.run}"),
        run=escape(told.run),
        detail=escape(told.detail),
        notes=f"<ul class='notes'>{notes}</ul>" if notes else "",
        caption=escape(CAPTION),
        shares=f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
        overlap_caption=escape(OVERLAP),
        overlap=_overlap_table(result),
        footer=escape(f"{CAVEAT} Written by cppo-verl {__version__}."),
    )


def _tenths(result: Replay, tally: Tally) -> list[float]:
    return [float(x / n) if n else 0.0 for x, n in zip(tally.by_position, result.by_position, strict=True)]


def _strip(shares: Sequence[float], most: float) -> str:
    """Ten bars, drawn up to ``most``."""
    said = ", ".join(percent(x) for x in shares)
    bars = "".join(
        f"<rect x='{10 * i + 1}' y='{24 - 24 * x / most:.2f}' width='8' height='{24 * x / most:.2f}'/>"
        for i, x in enumerate(shares)
    )
    base = "<line x1='0' x2='100' y1='24.5' y2='24.5'/>"
    return f"<svg viewBox='0 0 100 25' role='img' aria-label='by tenth: {said}'>{bars}{base}</svg>"


def _overlap_table(result: Replay) -> str:
    rows = masking(result)
    if not rows:
        return "<p class='absent'>No rule masks a token.</p>"
    heads = "".join(f"<th scope='col'><span>{n}</span></th>" for n in range(1, len(rows) + 1))
    lines = []
    for n, i in enumerate(rows, 1):
        shares = [result.overlap(i, j) for j in rows]
        drawn = "".join(f"<td style='--share:{100 * (x or 0):.0f}%'>{_share(x)}</td>" for x in shares)
        lines.append(f"<tr><th scope='row'>{n}. {escape(result.tallies[i].candidate.name)}</th>{drawn}</tr>")
    head = f"<thead><tr><th scope='col'>rule</th>{heads}</tr></thead>"
    return f"<table class='overlap'>{head}<tbody>{''.join(lines)}</tbody></table>"


def write(told: Told, out: Path) -> list[Path]:
    """Write replay.csv, replay-overlap.csv, replay.md and replay.html to ``out``, each whole; their paths."""
    texts = {
        "replay.csv": rules_csv(told.result),
        "replay-overlap.csv": overlap_csv(told.result),
        "replay.md": markdown(told),
        "replay.html": html_page(told),
    }
    for name, content in texts.items():
        atomic.write(out / name, content)
    return [out / name for name in texts]


_MORE = """
h1 { font-size: clamp(1.4rem, 4vw, 2rem); }
.caption { max-width: 46rem; padding-bottom: .6rem; color: var(--soft); font-size: .875rem; }
.wide { overflow-x: auto; }
.wide table { min-width: 52rem; }
.wide th, .wide td { padding: .3rem .4rem; overflow-wrap: normal; vertical-align: middle; }
.wide thead th { vertical-align: bottom; }
.wide th[scope=row], .wide thead th:first-child { position: sticky; left: 0; background: var(--page); }
.wide th[scope=row] { width: 20%; min-width: 7rem; padding-left: 0; overflow-wrap: anywhere; }
.wide .strip { width: 8rem; }
.strip svg { display: block; width: 8rem; height: 1.5rem; }
.strip rect { fill: var(--blue); }
.strip line { stroke: var(--rule); }
.overlap td { background: color-mix(in srgb, var(--blue) calc(var(--share) * .45), transparent); }
"""

PAGE = page("""\
<header>
<p class="kicker">$run</p>
<h1>What each rule would have masked</h1>
<p class="detail">$detail</p>
</header>
$notes
<section aria-labelledby="shares">
<h2 id="shares">Shares</h2>
<p class="caption">$caption</p>
<div class="wide" tabindex="0" role="region" aria-labelledby="shares">$shares</div>
</section>
<section aria-labelledby="overlap">
<h2 id="overlap">Overlap</h2>
<p class="caption">$overlap_caption</p>
<div class="wide" tabindex="0" role="region" aria-labelledby="overlap">$overlap</div>
</section>
""")
