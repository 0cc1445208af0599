"""Writes a selftest down: selftest.json, selftest.md and selftest.html, one self-contained page for a bug report."""

import json
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from cppo_verl import __version__, atomic
from cppo_verl.reporting.template import STYLE
from cppo_verl.selftest.machine import Machine
from cppo_verl.selftest.stages import STAGES
from cppo_verl.selftest.table import FAILS, HOLDS, NOT_RUN, NOTED, Result, Row, show
from cppo_verl.selftest.template import OWN_STYLE, TEMPLATE

DATA, TEXT, PAGE = "selftest.json", "selftest.md", "selftest.html"
HEADS = ("measured", "predicted", "limit", "verdict")
TITLES = {stage.name: stage.title for stage in STAGES}
SIGNS = {HOLDS: "✓", FAILS: "✗", NOT_RUN: "–", NOTED: "·"}
CLASSES = {HOLDS: "holds", FAILS: "fails", NOT_RUN: "not-run", NOTED: "noted"}


def write(out: Path, here: Machine, results: Sequence[Result]) -> None:
    """Write the three files to ``out``, each atomically."""
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    content = {
        "cppo_verl": __version__,
        "written": written,
        "sentence": sentence(results),
        "machine": dict(here.facts),
        "results": [result.to_json() for result in results],
    }
    atomic.write(out / DATA, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    atomic.write(out / TEXT, markdown(here, results, written))
    atomic.write(out / PAGE, html_page(here, results, written))


def sentence(results: Sequence[Result]) -> str:
    """The selftest in one sentence."""
    counts = {verdict: [r.stage for r in results if r.verdict == verdict] for verdict in (HOLDS, FAILS, NOT_RUN)}
    ran = len(counts[HOLDS]) + len(counts[FAILS])
    parts = [f"{len(counts[HOLDS])} of {ran} stages hold"]
    if counts[FAILS]:
        parts.append(f"{', '.join(counts[FAILS])} {'fails' if len(counts[FAILS]) == 1 else 'fail'}")
    if counts[NOT_RUN]:
        parts.append(f"not run here: {', '.join(counts[NOT_RUN])}")
    return "; ".join(parts)


def markdown(here: Machine, results: Sequence[Result], written: str) -> str:
    """The page in Markdown."""
    lines = [f"# cppo-verl selftest: {sentence(results)}", "", f"{written}, cppo-verl {__version__}.", ""]
    lines += ["| | |", "|---|---|", *(f"| {_md(name)} | {_md(text)} |" for name, text in here.facts.items()), ""]
    for result in results:
        lines += [
            f"## {result.stage}: {result.verdict}",
            "",
            f"{TITLES[result.stage]}. {_duration(result, here)}".strip(),
            "",
        ]
        if result.reason:
            lines += ["```", result.reason.replace("```", "'''"), "```", ""]
        if result.rows:
            lines += [f"| what | {' | '.join(HEADS)} | note |", "|---|" + "---:|" * 3 + "---|---|"]
            lines += [
                f"| {' | '.join(map(_md, (row.what, *_cells(row), row.verdict, row.note)))} |" for row in result.rows
            ]
            lines.append("")
    return "\n".join(lines)


def html_page(here: Machine, results: Sequence[Result], written: str) -> str:
    """One page with its style inside; no scripts, no references."""
    verdicts = [result.verdict for result in results]
    ran = verdicts.count(HOLDS) + verdicts.count(FAILS)
    facts = "\n".join(f"<div><dt>{escape(n)}</dt><dd>{escape(t)}</dd></div>" for n, t in here.facts.items())
    return TEMPLATE.substitute(
        title=escape(f"selftest: {sentence(results)}"),
        style=STYLE + OWN_STYLE,
        figures=f"{verdicts.count(HOLDS)} of {ran}",
        mood=CLASSES[FAILS if FAILS in verdicts else HOLDS],
        span=_rest_of(results),
        overview="\n".join(_overview(result) for result in results),
        facts=facts,
        stages="\n".join(_stage(result, here) for result in results),
        footer=escape(f"{written}. Written by cppo-verl {__version__}. docs/selftest.md explains the rows."),
    )


def _rest_of(results: Sequence[Result]) -> str:
    """What stands below the large figures."""
    rest = sentence(results).partition("; ")[2]
    return escape(rest[:1].upper() + rest[1:]) or "Nothing failed, and nothing was left out."


def _overview(result: Result) -> str:
    sign = f'<span class="sign" aria-hidden="true">{SIGNS[result.verdict]}</span>'
    return (
        f'<li class="{CLASSES[result.verdict]}"><a href="#{result.stage}">{sign}'
        f"<b>{escape(result.stage)}</b> <span>{escape(TITLES[result.stage])}</span></a></li>"
    )


def _stage(result: Result, here: Machine) -> str:
    kind = CLASSES[result.verdict]
    parts = [
        f'<section id="{result.stage}" class="stage {kind}">',
        f'<h2>{escape(result.stage)} <span class="verdict">{escape(result.verdict)}</span></h2>',
        f'<p class="detail">{escape(TITLES[result.stage])}. {escape(_duration(result, here))}</p>',
    ]
    if result.verdict == NOT_RUN:
        parts.append(f'<p class="because">Not run here, because {escape(result.reason)}.</p>')
    elif result.reason:
        parts.append(f'<pre class="reason">{escape(result.reason)}</pre>')
    if result.rows:
        heads = "".join(f'<th scope="col">{name}</th>' for name in ("what", *HEADS))
        body = "\n".join(map(_line, result.rows))
        parts.append(f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>")
    return "\n".join([*parts, "</section>"])


def _line(row: Row) -> str:
    note = f'<span class="note">{escape(row.note)}</span>' if row.note else ""
    cells = "".join(
        f'<td data-head="{head}">{escape(cell)}</td>' for head, cell in zip(HEADS, _cells(row), strict=False)
    )
    mark = f'<td data-head="verdict" class="mark">{SIGNS[row.verdict]} {escape(row.verdict)}</td>'
    return f'<tr class="{CLASSES[row.verdict]}"><th scope="row">{escape(row.what)}{note}</th>{cells}{mark}</tr>'


def _cells(row: Row) -> tuple[str, str, str]:
    return show(row.measured, row.unit), show(row.predicted, row.unit), show(row.limit, row.unit)


def _duration(result: Result, here: Machine) -> str:
    if not result.seconds:
        return ""
    stage = next(stage for stage in STAGES if stage.name == result.stage)
    expected = stage.seconds["cuda" if here.device == "cuda" else "cpu"]
    return f"Took {result.seconds:.0f} s; expected {expected:.0f}, at most {stage.limit:.0f}."


def _md(text: str) -> str:
    """Text that a cell of a Markdown table takes literally."""
    return "".join("\\" + letter if letter in "\\`*_[]<>#|" else letter for letter in " ".join(text.split()))
