"""Writes a selftest down: selftest.json, selftest.md and selftest.html, one self-contained page for a bug report."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import jinja2

from cppo_verl import __version__, atomic
from cppo_verl.reporting.template import STYLE
from cppo_verl.selftest.machine import Machine
from cppo_verl.selftest.stages import STAGES
from cppo_verl.selftest.table import FAILS, HOLDS, NOT_RUN, NOTED, Result, show

DATA, TEXT, PAGE = "selftest.json", "selftest.md", "selftest.html"
SIGNS = {HOLDS: "✓", FAILS: "✗", NOT_RUN: "–", NOTED: "·"}
FOLDER = Path(__file__).parent


def write(out: Path, here: Machine, results: Sequence[Result]) -> None:
    """Write the three files to ``out``, each atomically."""
    content = {
        "cppo_verl": __version__,
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "sentence": sentence(results),
        "machine": dict(here.facts),
        "results": [result.to_json() for result in results],
    }
    atomic.write(out / DATA, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    given = {**content, "results": results, "kinds": [r.verdict for r in results], "style": STYLE + _style()}
    stages = {stage.name: stage for stage in STAGES}
    device = "cuda" if here.device == "cuda" else "cpu"
    for name, markup in ((TEXT, False), (PAGE, True)):
        atomic.write(out / name, _templates(markup).get_template(name).render(given, stages=stages, device=device))


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


def _templates(markup: bool) -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=markup,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters |= {"cell": _cell, "kind": lambda verdict: verdict.split(" here")[0].replace(" ", "-")}
    found.globals |= {"show": show, "sign": SIGNS.__getitem__}
    return found


def _style() -> str:
    return (FOLDER / "selftest.css").read_text(encoding="utf-8")


def _cell(text: str) -> str:
    """Text that a cell of a Markdown table takes literally."""
    return "".join("\\" + letter if letter in "\\`*_[]<>#|" else letter for letter in " ".join(text.split()))
