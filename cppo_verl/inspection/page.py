"""Writes the page of single tokens: one self-contained file.

The page holds an index (steps, and what the list shows of each response), style and scripts, and after them a chunk a
response, deflated and in base64, which the browser unpacks when the response is opened.
"""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from cppo_verl import __version__, atomic
from cppo_verl.inspection.chunks import Layout, facts, pack
from cppo_verl.recording import files as records
from cppo_verl.recording.numbers import Numbers
from cppo_verl.recording.numbers import of as numbers_of
from cppo_verl.recording.record import Header, StepRecord
from cppo_verl.trust_region.knobs import names_from_outside
from cppo_verl.trust_region.rules import BUILT_IN, capability

RECORD_SHARE = 2.4  # bytes of a page for one of its records, on the safe side
LIMIT = 100 * 10**6  # bytes of a page
SCRIPTS = ("chunks.js", "words.js", "text.js", "plot.js", "app.js")
SCALE_QUANTILE = 0.999  # of the divergence, to which it is shaded where there is no threshold


@dataclass
class Index:
    """What is known before a response is opened: a column a fact, a row a response."""

    name: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)  # in base64

    def add(self, record: StepRecord) -> None:
        """A step and its responses."""
        first, last = (numbers_of(record.header, record.responses, last) for last in (False, True))
        self.steps.append(_step(record.header, first))
        for response, *derived in zip(record.responses, first, last, strict=True):
            derived = derived[: len(response.looks)]
            data, layout, texts = pack(response, derived)
            self.chunks.append(base64.b64encode(data))
            if layout not in self.layouts:
                self.layouts.append(layout)
            row = {"step": len(self.steps) - 1, "layout": self.layouts.index(layout), "texts": texts}
            for name, value in (row | facts(response, derived)).items():
                self.columns.setdefault(name, []).append(value)

    def summary(self, out: Path) -> str:
        """One line on what was written."""
        tokens, steps = sum(self.columns.get("length", ())), len(self.steps)
        what = f"{steps} step{'s' * (steps != 1)}, {len(self.chunks)} responses, {tokens} tokens"
        return f"{what}; {out.stat().st_size / 1e6:.1f} MB"


def write_page(run_dir: Path, out: Path, steps: str | None = None, title: str | None = None) -> Index:
    """Write the page of ``run_dir``'s records to ``out``, whole or not at all; what is in it.

    ``steps`` are those to show (``files.chosen_steps``); by default as many, evenly spaced, as keep the page below
    ``LIMIT``. RecordError: there is no record, none of these steps, or none of them can be read.
    """
    index = Index(title or run_dir.resolve().name)
    chosen = records.chosen_steps(run_dir, steps)
    total = RECORD_SHARE * sum(records.path_of(run_dir, step).stat().st_size for step in chosen)
    every = math.ceil(total / LIMIT) if steps is None else 1
    if every > 1:
        index.notes.append(
            f"The page would have about {total / 1e6:.0f} MB, so it holds one recorded step in {every}. "
            "--steps FIRST:LAST[:EVERY] chooses others."
        )
    for record in records.read_run(run_dir, chosen[::every], index.notes):
        index.add(record)
    _write(index, out)
    return index


def _step(header: Header, derived: Sequence[Numbers]) -> dict[str, Any]:
    delta = float(header.knobs["delta"]) if capability(header.rule).token_threshold else None
    values = np.concatenate([np.zeros(0, np.float32), *(numbers.divergence for numbers in derived)])
    values = values[np.isfinite(values)]
    return {
        "step": header.step,
        "rule": header.rule,
        "says": knob_words(header),
        "delta": delta,
        "scale": delta or (float(np.quantile(values, SCALE_QUANTILE)) if len(values) else 0.0),
        "updates": header.updates,
    }


def knob_words(header: Header) -> list[str]:
    """The knobs that the rule makes use of, in words."""
    knobs, reads = header.knobs, capability(header.rule).reads if header.rule in BUILT_IN else ()
    estimator = f"top-{knobs.get('topk')}" if knobs.get("estimator") == "topk" else "sampled token"
    words = [f"{str(knobs.get('divergence', '')).upper()}, {estimator}"]
    if knobs.get("anchor") == "proximal":
        words.append("from the policy that began the step")
    if "delta" in reads:
        words.append(f"δ {knobs.get('delta'):g}")
    if "budget" in reads:
        budget, weights = knobs.get("budget"), knobs.get("weights")
        words.append("no prefix budget" if budget == "none" else f"δ_b {knobs.get('delta_b'):g} ({budget})")
        words.append(f"w_min {knobs.get('w_min'):g}" if weights == "linear" else f"{weights} weights")
    if "gate" in reads:
        words.append(f"{knobs.get('gate')} gate")
    return words + [f"{name} {knobs[name]}" for name in names_from_outside(knobs)]


def _write(index: Index, out: Path) -> None:
    page = Template(_asset("inspect.html")).substitute(
        title=escape(f"{index.name}: token by token"),
        name=escape(index.name),
        style=_asset("inspect.css"),
        script="\n".join(map(_asset, SCRIPTS)),
        index=_json(index),
        footer=escape(f"Written by cppo-verl {__version__}."),
        chunks="\0",
    )
    head, tail = page.encode("utf-8", "replace").split(b"\0")
    masked = [masked or 0 for masked in index.columns.get("masked", ())]
    first = masked.index(max(masked)) if masked else 0  # the one that the page opens on need not wait for others
    with atomic.replacing(out) as beside, beside.open("wb") as stream:
        stream.write(head)
        for i in sorted(range(len(masked)), key=lambda i: i != first):
            stream.write(b'<script type="text/plain" id="r%d">%b</script>\n' % (i, index.chunks[i]))
        stream.write(tail)


def _json(index: Index) -> str:
    said = {"name": index.name, "notes": index.notes, "steps": index.steps, "layouts": index.layouts}
    text = json.dumps({**said, "responses": index.columns}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\0", "\\u0000")  # the text of a run must not end the script


def _asset(name: str) -> str:
    return (files("cppo_verl.inspection") / "assets" / name).read_text(encoding="utf-8")
