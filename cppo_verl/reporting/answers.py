"""Where the two readers of an answer disagree: the paper's scorer (``math_dapo``) and ``math_verify``.

The maths reward leaves both verdicts in the dumps of a run's validations (``RUN/validations/STEP.jsonl``): ``paper`` is
the scorer's, ``verified`` is math_verify's, true, false, or null where it was not asked or could not tell. What models
wrote is shown as text, its end alone.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cppo_verl import jsonlines
from cppo_verl.reporting.text import count, percent

FOLDER = "validations"
SHOWN = 5
LONGEST = 600  # letters of an answer that are shown


@dataclass(frozen=True)
class Disagreements:
    """How many answers both judged, on how many they disagree, and of the last of those ``step``, ``verdict`` (how),
    ``truth`` and ``output``."""

    judged: int
    scorer_alone: int
    verify_alone: int
    damaged: int
    shown: tuple[Mapping[str, str], ...]

    @property
    def sentence(self) -> str:
        apart = self.scorer_alone + self.verify_alone
        said = f"Of {count(self.judged, 'validation answer')} that math_dapo, the paper's scorer, and math_verify both "
        said += f"judged, they disagree on {apart} ({percent(apart / self.judged)})"
        if apart:
            said += f": {self.scorer_alone} are right for math_dapo alone, {self.verify_alone} for math_verify alone. "
            said += "The last of them:" if apart > len(self.shown) else "These are:"
        said = said if apart else f"{said}."
        return said + (f" Lines that could not be read: {self.damaged}." if self.damaged else "")


def disagreements(run_dir: Path) -> Disagreements | None:
    """What a run's dumped validations say; None where none holds both verdicts."""
    judged, alone = 0, {True: 0, False: 0}
    damaged: list[str] = []
    shown: deque[Mapping[str, str]] = deque(maxlen=SHOWN)
    for path in sorted((run_dir / FOLDER).glob("*.jsonl"), key=lambda path: (len(path.stem), path.stem)):
        for entry in _both_verdicts(path, damaged):
            judged += 1
            right, verified = bool(entry["paper"]), bool(entry["verified"])
            if right != verified:
                alone[right] += 1
                said = ("right for math_dapo, wrong" if right else "wrong for math_dapo, right") + " for math_verify"
                texts = {"truth": _end(entry.get("gts")), "output": _end(entry.get("output"))}
                shown.append({"step": str(entry.get("step", path.stem)), "verdict": said, **texts})
    return Disagreements(judged, alone[True], alone[False], len(damaged), tuple(shown)) if judged else None


def _both_verdicts(path: Path, damaged: list[str]) -> Iterator[dict[str, Any]]:
    """The entries that both judged; of a dump whose first entry has no ``verified`` no more is read."""
    for line in jsonlines.lines(path):
        if line.fault or not isinstance(line.value, dict):
            damaged.append(line.fault or "not an object")
        elif "verified" not in line.value or "paper" not in line.value:
            return
        elif line.value["verified"] is not None:
            yield line.value


def _end(value: object) -> str:
    text = str(value if value is not None else "")
    return text if len(text) <= LONGEST else f"… {text[-LONGEST:]}"
