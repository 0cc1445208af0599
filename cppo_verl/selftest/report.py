"""Writes a selftest down: selftest.json, selftest.md and selftest.html, one self-contained page for a bug report."""

import json
import os
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
from cppo_verl.selftest.session import STAGES
from cppo_verl.selftest.stage import FAILS, HOLDS, NOT_RUN, NOTED, Result, show

DATA, TEXT, PAGE = "selftest.json", "selftest.md", "selftest.html"
SIGNS = {HOLDS: "✓", FAILS: "✗", NOT_RUN: "–", NOTED: "·"}


def write(out: Path, device: str, facts: Mapping[str, str], results: Sequence[Result]) -> None:
    """Write the three files to ``out``, each atomically; the user's home folder is ``~`` in them."""
    said, home = sentence(results), os.path.expanduser("~")
    content: dict[str, Any] = {"cppo_verl": __version__, "sentence": said, "machine": dict(facts)}
    content["written"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    content["results"] = [asdict(result) for result in results]
    text = json.dumps(content, indent=1, ensure_ascii=False)
    text = text.replace(home, "~") if len(home) > 1 else text
    atomic.write(out / DATA, text + "\n")
    style = Markup((files("cppo_verl.selftest") / "assets/selftest.css").read_text(encoding="utf-8"))
    given = {**json.loads(text), "title": f"selftest: {said}", "stages": STAGES, "device": device or "cpu"}
    shared = template.environment()  # the report's, with its page and its way of escaping
    assert shared.loader is not None
    templates = shared.overlay(loader=ChoiceLoader([PackageLoader("cppo_verl.selftest", "assets"), shared.loader]))
    for name in (TEXT, PAGE):
        atomic.write(out / name, templates.get_template(name).render(given, style=style, show=show, signs=SIGNS))


def sentence(results: Sequence[Result]) -> str:
    """The selftest in one sentence."""
    holds, fails, not_run = ([r.stage for r in results if r.verdict == v] for v in (HOLDS, FAILS, NOT_RUN))
    said = f"{len(holds)} of {len(holds) + len(fails)} stages hold"
    said += f"; {', '.join(fails)} {'fails' if len(fails) == 1 else 'fail'}" if fails else ""
    return said + (f"; not run here: {', '.join(not_run)}" if not_run else "")
