"""Where the two readers of an answer disagree: the paper's scorer (``math_dapo``) and ``math_verify``.

The maths reward leaves both verdicts in the dumps of a run's validations (``RUN/validations/STEP.jsonl``): ``paper`` is
the scorer's, ``verified`` is math_verify's, true, false, or null where it was not asked or could not tell. What models
wrote is shown as text, its end alone.
"""

from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cppo_verl import jsonlines
from cppo_verl.reporting.text import count, percent

FOLDER = "validations"
SHOWN = 5
LONGEST = 600  # letters of an answer that are shown


class Disagreements(NamedTuple):
    """On how many of the answers that both judged they disagree, in words, and of the last of those ``step``,
    ``verdict`` (how), ``truth`` and ``output``."""

    sentence: str
    shown: tuple[Mapping[str, str], ...]


def disagreements(run_dir: Path) -> Disagreements | None:
    """What a run's dumped validations say; None where none holds both verdicts."""
    found: Counter[str] = Counter()
    shown: deque[Mapping[str, str]] = deque(maxlen=SHOWN)
    for path in sorted((run_dir / FOLDER).glob("*.jsonl"), key=lambda path: (len(path.stem), path.stem)):
        for line in jsonlines.lines(path):
            entry = line.value
            if line.fault or not isinstance(entry, dict):
                found["damaged"] += 1
                continue
            if "verified" not in entry or "paper" not in entry:
                break  # an old dump, of which no more is read
            if entry["verified"] is None:
                continue
            found["judged"] += 1
            right, verified = bool(entry["paper"]), bool(entry["verified"])
            if right != verified:
                found["dapo" if right else "verify"] += 1
                said = ("right for math_dapo, wrong" if right else "wrong for math_dapo, right") + " for math_verify"
                texts = {"truth": _end(entry.get("gts")), "output": _end(entry.get("output"))}
                shown.append({"step": str(entry.get("step", path.stem)), "verdict": said, **texts})
    return Disagreements(_sentence(found), tuple(shown)) if found["judged"] else None


def _sentence(found: Mapping[str, int]) -> str:
    judged, apart = found["judged"], found["dapo"] + found["verify"]
    said = f"Of {count(judged, 'validation answer')} that math_dapo, the paper's scorer, and math_verify both "
    said += f"judged, they disagree on {apart} ({percent(apart / judged)})"
    if apart:
        said += f": {found['dapo']} are right for math_dapo alone, {found['verify']} for math_verify alone. "
    said += "The last of them:" if apart > SHOWN else "These are:" if apart else "."
    return said + (f" Lines that could not be read: {found['damaged']}." if found["damaged"] else "")


def _end(value: object) -> str:
    text = str(value if value is not None else "")
    return text if len(text) <= LONGEST else f"… {text[-LONGEST:]}"
