"""Writes a selftest down: selftest.json, selftest.md and selftest.html, one self-contained page for a bug report."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, PackageLoader
from markupsafe import Markup

from cppo_verl import __version__, atomic
from cppo_verl.reporting import template
from cppo_verl.selftest.stages import STAGES
from cppo_verl.selftest.table import FAILS, HOLDS, NOT_RUN, NOTED, Result, show

DATA, TEXT, PAGE = "selftest.json", "selftest.md", "selftest.html"
SIGNS = {HOLDS: "✓", FAILS: "✗", NOT_RUN: "–", NOTED: "·"}
KINDS = {HOLDS: "holds", FAILS: "fails", NOT_RUN: "not-run", NOTED: "noted"}  # classes of the style


def write(out: Path, device: str, facts: Mapping[str, str], results: Sequence[Result]) -> None:
    """Write the three files to ``out``, each atomically; the user's home folder is ``~`` in them."""
    said = sentence(results)
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    content: dict[str, Any] = {"cppo_verl": __version__, "written": now, "sentence": said}
    content |= {"machine": dict(facts), "results": [asdict(result) for result in results]}
    text, home = json.dumps(content, indent=1, ensure_ascii=False), str(Path.home())
    text = text.replace(home, "~") if len(home) > 1 else text
    atomic.write(out / DATA, text + "\n")
    style = Markup((files("cppo_verl.selftest") / "assets/selftest.css").read_text(encoding="utf-8"))
    given = {**json.loads(text), "title": f"selftest: {said}", "stages": STAGES, "device": device or "cpu"}
    shared = template.environment()  # the report's, with its page and its way of escaping
    assert shared.loader is not None
    templates = shared.overlay(loader=ChoiceLoader([PackageLoader("cppo_verl.selftest", "assets"), shared.loader]))
    for name in (TEXT, PAGE):
        page = templates.get_template(name).render(given, style=style, show=show, signs=SIGNS, kinds=KINDS)
        atomic.write(out / name, page)


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
