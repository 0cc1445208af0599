"""Writes the page of single tokens: one self-contained file, a step at a time in memory.

The page holds an index (steps, and what the list shows of each response), style and scripts, and after them a chunk a
response, deflated and in base64, which the browser unpacks when the response is opened.
"""

import base64
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import IO, Any

import numpy as np
import pyarrow.parquet

from cppo_verl import __version__, atomic
from cppo_verl.inspection.chunks import Chunk, pack
from cppo_verl.recording import files as records
from cppo_verl.recording import numbers
from cppo_verl.recording.record import Header, RecordError, StepRecord
from cppo_verl.trust_region.knobs import names_from_outside

TOKEN_BYTES = 20  # of a page, about; with what it takes to say so the limit below is kept on the safe side
LIMIT = 100 * 10**6  # bytes of a page
SCRIPTS = ("chunks.js", "words.js", "text.js", "plot.js", "app.js")
THRESHOLD_RULES = ("cppo", "dppo", "trm_max")  # where delta is what a token's own divergence is held against
SCALE_QUANTILE = 0.999  # of the divergence, to which it is shaded where there is no such threshold


@dataclass
class Index:
    """What is known before a response is opened: a column a fact, a row a response."""

    name: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    layouts: list[tuple[tuple[str, str], ...]] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=lambda: [0])  # of the chunks, where they were put down

    @property
    def responses(self) -> int:
        return len(self.columns.get("step", ()))

    def add(self, step: int, chunk: Chunk) -> None:
        if chunk.layout not in self.layouts:
            self.layouts.append(chunk.layout)
        row = {"step": step, "layout": self.layouts.index(chunk.layout), "texts": chunk.texts, **chunk.facts}
        for name, value in row.items():
            self.columns.setdefault(name, []).append(value)


def write_page(run_dir: Path, out: Path, steps: Sequence[int] | None = None, title: str | None = None) -> Index:
    """Write the page of ``run_dir``'s records to ``out``, whole or not at all; what is in it.

    Args:
        steps: the steps to show; by default as many, evenly spaced, as keep the page below ``LIMIT``.

    Raises:
        RecordError: there is no record, a wanted step has none, or none of them can be read.
    """
    index = Index(title or run_dir.resolve().name)
    found = records.steps(run_dir)
    chosen = list(steps) if steps is not None else _fitting(found, index.notes)
    if not chosen or not set(chosen) <= set(found):
        next(records.read_run(run_dir, chosen or None))  # says what is missing
    with tempfile.TemporaryFile() as chunks:
        for step in chosen:
            try:
                _add_step(index, records.read(found[step]), chunks)
            except RecordError as error:
                if len(chosen) == 1:
                    raise
                index.notes.append(f"Step {step} is left out: {error}")
        if not index.steps:
            raise RecordError(index.notes[-1])
        _write(index, chunks, out)
    return index


def chosen_steps(text: str, run_dir: Path) -> list[int]:
    """``12``, ``5:20``, ``5:`` or ``5:60:3`` (every third recorded one) as the recorded steps that it means.

    Raises:
        RecordError: another form, or none of these steps is recorded.
    """
    recorded = list(records.steps(run_dir))
    parts = re.fullmatch(r"(-?[0-9]+)|(-?[0-9]*):(-?[0-9]*)(?::([1-9][0-9]*))?", text)
    if parts is None or not text.strip(":"):
        raise RecordError(f"--steps {text}: not FIRST:LAST[:EVERY] in whole numbers, as in 10:60:3 or 12.")
    one, first, last, every = parts.groups()
    first, last = one or first, one or last
    found = [s for s in recorded if (not first or s >= int(first)) and (not last or s <= int(last))][:: int(every or 1)]
    if not found:
        span = f"they are {recorded[0]} to {recorded[-1]}" if recorded else "there is none"
        raise RecordError(f"--steps {text}: no recorded step is among them; {span}.")
    return found


def summary(index: Index, out: Path) -> str:
    """One line on what was written."""
    tokens, steps = sum(index.columns.get("length", ())), len(index.steps)
    size = out.stat().st_size / 1e6
    return f"{steps} step{'s' * (steps != 1)}, {index.responses} responses, {tokens} tokens; {size:.1f} MB"


def token_count(path: Path) -> int:
    """Tokens of a step's record from the file's metadata, an empty response as one; 0 where the file is damaged."""
    try:
        with path.open("rb") as stream:
            metadata = pyarrow.parquet.read_metadata(stream)
    except (pyarrow.ArrowException, OSError):
        return 0
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    columns = (group.column(i) for group in groups for i in range(group.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema.startswith("token_ids."))


def _fitting(found: Mapping[int, Path], notes: list[str]) -> list[int]:
    """All steps, or as many of them as fit, evenly spaced; a note says what was left out and how to have it."""
    total = sum(map(token_count, found.values())) * TOKEN_BYTES
    every = -(-total // LIMIT) or 1
    if every > 1:
        notes.append(
            f"The page would have about {total / 1e6:.0f} MB, so it holds one recorded step in {every}. "
            f"--steps FIRST:LAST[:EVERY] chooses others."
        )
    return list(found)[::every]


def _add_step(index: Index, record: StepRecord, chunks: IO[bytes]) -> None:
    number, looks = len(index.steps), _numbers_of(record)
    index.steps.append(_step(record.header, looks))
    for response, derived in zip(record.responses, looks, strict=True):
        chunk = pack(response, derived)
        chunks.write(b'<script type="text/plain" id="r%d">' % index.responses)
        chunks.write(base64.b64encode(chunk.data) + b"</script>\n")
        index.ends.append(chunks.tell())
        index.add(number, chunk)


def _numbers_of(record: StepRecord) -> list[list[numbers.Numbers]]:
    """The derived numbers of every look of every response."""
    derived = [[found] for found in numbers.of(record.header, record.responses)]
    again = [i for i, response in enumerate(record.responses) if response.last is not None]
    later = numbers.of(record.header, [record.responses[i] for i in again], last=True) if again else ()
    for i, found in zip(again, later, strict=True):
        derived[i].append(found)
    return derived


def _step(header: Header, derived: Sequence[Sequence[numbers.Numbers]]) -> dict[str, Any]:
    delta = float(header.knobs["delta"]) if header.rule in THRESHOLD_RULES and "delta" in header.knobs else None
    values = np.concatenate([looks[0].divergence for looks in derived] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    return {
        "step": header.step,
        "rule": header.rule,
        "says": knob_words(header),
        "delta": delta,
        "scale": delta or (float(np.quantile(values, SCALE_QUANTILE)) if len(values) else 0.0),
        "updates": header.updates,
        "trained": header.responses,
    }


def knob_words(header: Header) -> list[str]:
    """The knobs that the rule makes use of, in words."""
    knobs, rule = header.knobs, header.rule
    estimator = f"top-{knobs.get('topk')}" if knobs.get("estimator") == "topk" else "sampled token"
    words = [f"{str(knobs.get('divergence', '')).upper()}, {estimator}"]
    if knobs.get("anchor") == "proximal":
        words.append("from the policy that began the step")
    if rule in THRESHOLD_RULES or rule.startswith("trm") or rule == "gbpo":
        words.append(f"δ {knobs.get('delta'):g}")
    if rule == "cppo":
        budget, weights = knobs.get("budget"), knobs.get("weights")
        words.append("no prefix budget" if budget == "none" else f"δ_b {knobs.get('delta_b'):g} ({budget})")
        words.append(f"w_min {knobs.get('w_min'):g}" if weights == "linear" else f"{weights} weights")
    if rule in ("cppo", "dppo"):
        words.append(f"{knobs.get('gate')} gate")
    return words + [f"{name} {knobs[name]}" for name in names_from_outside(knobs)]


def _write(index: Index, chunks: IO[bytes], out: Path) -> None:
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
    with atomic.replacing(out) as beside, beside.open("wb") as stream:
        stream.write(head)
        masked = [masked or 0 for masked in index.columns.get("masked", ())]
        first = masked.index(max(masked)) if masked else 0  # the one that the page opens on need not wait for others
        before, after = index.ends[first], index.ends[min(first + 1, len(masked))]
        for start, end in ((before, after), (0, before), (after, index.ends[-1])):
            stream.writelines(_blocks(chunks, start, end))
        stream.write(tail)


def _json(index: Index) -> str:
    said = {"name": index.name, "notes": index.notes, "steps": index.steps, "layouts": index.layouts}
    text = json.dumps({**said, "responses": index.columns}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\0", "\\u0000")  # the text of a run must not end the script


def _asset(name: str) -> str:
    return (files("cppo_verl.inspection") / "assets" / name).read_text(encoding="utf-8")


def _blocks(stream: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    stream.seek(start)
    while block := stream.read(min(1 << 20, end - stream.tell())):
        yield block
