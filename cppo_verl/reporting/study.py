"""Reads many runs: finds them, labels them, scores them, and keeps of each log only what the report shows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cppo_verl import paper
from cppo_verl.reporting.labels import Label, LabelError, deviations, label_of
from cppo_verl.reporting.logs import NoStepsError, read_run, starts_of_one
from cppo_verl.reporting.metrics import DRAWN
from cppo_verl.reporting.scores import Entry, Score, score_run
from cppo_verl.reporting.settings import CONFIG_FILE, settings_beside

DEPTH = 3  # how far below a directory of runs they are looked for


@dataclass(frozen=True)
class Study:
    """The runs in the order given; ``notes`` about the whole."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def models(self) -> list[str]:
        """Models with at least one logged step: the paper's in its order, then others in that of their first runs."""
        logged = list(dict.fromkeys(entry.label.model for entry in self.entries if len(entry.frame)))
        known = [model for model in paper.settings() if model in logged]
        return known + [model for model in logged if model not in known]


def read_study(places: Sequence[Path], labels: Mapping[str, Label], skip_bad_lines: bool = False) -> Study:
    """Read, label and score every run of these run directories, log files, and directories that hold runs.

    ``labels`` (path -> label) go over what a run's own config says; a LabelError names a path that is not among the
    runs, a LogError one that does not exist, or file and line of what is damaged.
    """
    given = {Path(path).resolve(): label for path, label in labels.items()}
    found: dict[Path, Path] = {}  # as resolved -> as given first
    twice: dict[str, None] = {}  # notes
    for place in (run for given_place in places for run in expand(given_place)):
        path = place.resolve()
        if path in found:
            twice[f"{found[path]} was given more than once and is counted once."] = None
        found.setdefault(path, place)
    if strangers := sorted(map(str, set(given) - set(found))):
        raise LabelError(f"--label for {strangers[0]}, which is not among the runs of this report.")
    entries = tuple(read_entry(place, given.get(path), skip_bad_lines) for path, place in found.items())
    return Study(entries, (*twice, *_double_notes(entries)))


def expand(place: Path) -> list[Path]:
    """The runs at or below a path: itself when it is one, else those in its subdirectories, by name. A directory of
    several logs of verl's own naming (``PROJECT/EXPERIMENT.jsonl``) is a run a file."""
    if not place.is_dir() or any((place / "logs").glob("*.jsonl")):
        return [place]
    if direct := sorted(place.glob("*.jsonl")):
        return [place] if starts_of_one(direct) else direct
    return _below(place, DEPTH) or [place]


def read_entry(place: Path, named: Label | None, skip_bad_lines: bool) -> Entry:
    """One run; a directory without a logged step is an entry too."""
    try:
        run = read_run(place, skip_bad_lines)
    except NoStepsError:
        settings, notes = settings_beside(place)
        label, nothing = named or label_of(settings, place.resolve()), Score(absent="no step was logged")
        return Entry(str(place), label, pd.DataFrame(), nothing, settings, notes, named is not None)
    label = named or label_of(run.settings, place.resolve())
    differing = deviations(label, run.settings)
    notes = (*run.notes, *([f"not the paper's setting: {', '.join(differing)}"] if differing else []))
    # of its columns those that are drawn, so that many runs fit in memory
    frame = run.frame[[name for name in run.frame.columns if name in DRAWN]].copy()
    return Entry(str(place), label, frame, score_run(run, label.model), run.settings, notes, named is not None)


def _below(place: Path, depth: int) -> list[Path]:
    found = []
    for child in sorted(child for child in place.iterdir() if child.is_dir() and not child.name.startswith(".")):
        if any((child / "logs").glob("*.jsonl")) or (child / CONFIG_FILE).is_file():
            found.append(child)
        elif depth > 1:
            found += _below(child, depth - 1)
    return found


def _double_notes(entries: Sequence[Entry]) -> Iterator[str]:
    places: dict[Label, list[str]] = {}
    for entry in entries:
        if len(entry.frame):
            places.setdefault(entry.label, []).append(entry.place)
    for label, found in places.items():
        one = label.model not in paper.settings() and label.seed
        how = "count as one seed, with their mean" if one else "are counted as so many seeds"
        if len(found) > 1:
            yield f"{len(found)} runs are {label}, and {how}: {', '.join(found)}."
