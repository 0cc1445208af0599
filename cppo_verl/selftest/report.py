"""Writes a selftest down: selftest.json, selftest.md and selftest.html, one self-contained page for a bug report."""

import json
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import ChoiceLoader, PackageLoader
from markupsafe import Markup

from cppo_verl import __version__, atomic
from cppo_verl.reporting import template
from cppo_verl.selftest.machine import Machine
from cppo_verl.selftest.stages import STAGES
from cppo_verl.selftest.table import FAILS, HOLDS, NOT_RUN, NOTED, Result, show

DATA, TEXT, PAGE = "selftest.json", "selftest.md", "selftest.html"
SIGNS = {HOLDS: "✓", FAILS: "✗", NOT_RUN: "–", NOTED: "·"}
KINDS = {HOLDS: "holds", FAILS: "fails", NOT_RUN: "not-run", NOTED: "noted"}  # classes of the style
ASSETS = files("cppo_verl.selftest") / "assets"


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
    given = {
        **content,
        "results": results,
        "title": f"selftest: {content['sentence']}",
        "stages": {stage.name: stage for stage in STAGES},
        "device": here.device or "cpu",
        "style": Markup((ASSETS / "selftest.css").read_text(encoding="utf-8")),
        "show": show,
        "signs": SIGNS,
        "kinds": KINDS,
    }
    shared = template.environment()  # the report's, with its page and its way of escaping
    assert shared.loader is not None
    templates = shared.overlay(loader=ChoiceLoader([PackageLoader("cppo_verl.selftest", "assets"), shared.loader]))
    for name in (TEXT, PAGE):
        atomic.write(out / name, templates.get_template(name).render(given))


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
