"""Reads many runs: finds them, labels them, scores them, and keeps of each log only what the report shows."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from cppo_verl import paper
from cppo_verl.reporting import names
from cppo_verl.reporting.labels import Label, LabelError, deviations, knobs_of, label_of
from cppo_verl.reporting.logs import NoStepsError, Run, read_run
from cppo_verl.reporting.rollouts import FOLDER, Dump, read_dump
from cppo_verl.reporting.scores import Entry, Score, score_run
from cppo_verl.reporting.settings import CONFIG_FILE, SettingsError, read_settings

DEPTH = 3  # how far below a directory of runs they are looked for


@dataclass(frozen=True)
class Study:
    """The runs in the order given; ``dumps`` by their place; ``notes`` about the whole."""

    entries: tuple[Entry, ...]
    dumps: Mapping[str, Dump]
    notes: tuple[str, ...]

    def models(self) -> list[str]:
        """Models with at least one logged step, in the order of their first runs."""
        return list(dict.fromkeys(entry.label.model for entry in self.entries if entry.run is not None))


def read_study(places: Sequence[Path], labels: Mapping[str, Label], skip_bad_lines: bool = False) -> Study:
    """Read, label and score every run.

    Args:
        places: run directories, log files, and directories that hold runs.
        labels: path -> label, over what the run's own config says.

    Raises:
        LogError: a path does not exist, or a log is damaged (file and line are named).
        LabelError: a label for a path that is not among the runs.
    """
    given = {Path(path).resolve(): label for path, label in labels.items()}
    found, notes = _unique(run for place in places for run in expand(place))
    strangers = set(given) - {place.resolve() for place in found}
    if strangers:
        raise LabelError(f"--label for {sorted(map(str, strangers))[0]}, which is not among the runs of this report.")
    entries = [read_entry(place, given.get(place.resolve()), skip_bad_lines) for place in found]
    dumps = {
        entry.place: dump
        for entry in entries
        if entry.run is not None and (dump := read_dump(Path(entry.place), skip_bad_lines)) is not None
    }
    return Study(tuple(entries), dumps, (*notes, *_double_notes(entries), *_dump_notes(entries, dumps)))


def expand(place: Path) -> list[Path]:
    """The runs at or below a path: itself when it is one, else those in its subdirectories, by name.

    A directory of several logs of verl's own naming (``PROJECT/EXPERIMENT.jsonl``) is a run a file.
    """
    if not place.is_dir() or any((place / "logs").glob("*.jsonl")):
        return [place]
    direct = sorted(place.glob("*.jsonl"))
    if direct:
        starts_of_one = len(direct) == 1 or all(path.name.startswith("metrics-") for path in direct)
        return [place] if starts_of_one else direct
    return _below(place, DEPTH) or [place]


def read_entry(place: Path, label: Label | None, skip_bad_lines: bool) -> Entry:
    """One run; a directory without a logged step is an entry too, without a run."""
    try:
        run = read_run(place, skip_bad_lines)
    except NoStepsError:
        settings, notes = _settings_alone(place)
        given, label = label is not None, label or label_of(settings, place.resolve())
        nothing = Score(pd.Series(dtype=float), 0, absent="no step was logged")
        return Entry(str(place), label, None, nothing, knobs_of(label, settings), notes, given)
    given, label = label is not None, label or label_of(run.settings, place.resolve())
    score = score_run(run, label.model)
    differing = deviations(label, run.settings)
    notes = (*run.notes, *([f"not the paper's setting: {', '.join(differing)}"] if differing else []))
    return Entry(str(place), label, reduced(run), score, knobs_of(label, run.settings), notes, given)


def reduced(run: Run) -> Run:
    """The run with the columns that the report draws, so that many fit in memory."""
    drawn = {*names.LINES, *names.BY_POSITION}
    kept = [name for name in run.frame.columns if name in drawn]
    return replace(run, frame=run.frame[kept].copy())


def _below(place: Path, depth: int) -> list[Path]:
    children = sorted(child for child in place.iterdir() if child.is_dir() and not child.name.startswith("."))
    found = []
    for child in children:
        if any((child / "logs").glob("*.jsonl")) or (child / CONFIG_FILE).is_file():
            found.append(child)
        elif depth > 1:
            found += _below(child, depth - 1)
    return found


def _settings_alone(place: Path) -> tuple[Mapping[str, object], tuple[str, ...]]:
    config = place / CONFIG_FILE
    if not config.is_file():
        return {}, ()
    try:
        return read_settings(config), ()
    except SettingsError as error:
        return {}, (str(error),)


def _unique(places: Iterable[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """The paths once each, and a note on those given again."""
    times = Counter[Path]()
    first = []
    for place in places:
        times[place.resolve()] += 1
        if times[place.resolve()] == 1:
            first.append(place)
    again = [str(place) for place in first if times[place.resolve()] > 1]
    return first, tuple(f"{place} was given more than once and is counted once." for place in again)


def _double_notes(entries: Sequence[Entry]) -> list[str]:
    count = Counter(entry.label for entry in entries if entry.run is not None)
    return [
        f"{times} runs are {label}, and {_counted(label)}: {_places(entries, label)}."
        for label, times in count.items()
        if times > 1
    ]


def _counted(label: Label) -> str:
    whole = label.model not in paper.settings() and label.seed
    return "count as one seed, with their mean" if whole else "are counted as so many seeds"


def _dump_notes(entries: Sequence[Entry], dumps: Mapping[str, Dump]) -> list[str]:
    return [
        f"{entry.place}/{FOLDER} holds no log-probs, so deviation by position is from the logged bins."
        for entry in entries
        if (Path(entry.place) / FOLDER).is_dir() and entry.place not in dumps
    ]


def _places(entries: Sequence[Entry], label: Label) -> str:
    return ", ".join(entry.place for entry in entries if entry.label == label)
