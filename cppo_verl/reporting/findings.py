"""What runs side by side (``outcomes``) say, in words and numbers: sentences, CSV and Markdown."""

from collections.abc import Sequence
from math import isfinite

from cppo_verl.reporting.intervals import interval
from cppo_verl.reporting.outcomes import MEASURES, Comparison, Difference, Outcome, known, seed_count
from cppo_verl.reporting.scores import ACCURACY
from cppo_verl.reporting.summary import plain
from cppo_verl.reporting.tables import csv_text

NO_INTERVAL = "one seed: no interval"
NO_PAIR = "no seed in common"
ABSENT = "–"

INTERVALS = "Intervals are Student's t, 95%, over the seeds; each stands alone, none is corrected for their number."
COUNTING = (
    "Best and final are over the validated steps after 0. The best of many noisy validations is above what the model "
    "would score again, the more so the more there are; the final is not."
)


def sentence(comparison: Comparison) -> str:
    """The result in words: the final scores, and what the pairs say."""
    finals = [
        f"{name} {with_interval(known(outcomes, 'final'), comparison)}"
        for name, outcomes in comparison.methods.items()
        if known(outcomes, "final")
    ]
    if not finals:
        return f"{comparison.model}: no run has a score."
    said = [f"{comparison.model}, {kind_name(comparison)} at the end: {'; '.join(finals)}."]
    said += [_difference_sentence(d, comparison) for d in comparison.differences if d.measure == "final" and d.by_seed]
    return " ".join(said)


def comparison_csv(comparisons: Sequence[Comparison]) -> str:
    """A row a model and method: seeds, best and final with their intervals, masked share, time."""
    heads = ["model", "method", "measure", "runs", "seeds", "collapsed"]
    heads += [f"{name}_{part}" for name in MEASURES for part in ("mean", "low", "high", "n")]
    heads += ["masked_percent", "seconds_a_step", "hours_a_run"]
    rows = []
    for comparison in comparisons:
        for name, outcomes in comparison.methods.items():
            scores = [x for measure in MEASURES for x in _four(known(outcomes, measure))]
            more = [_number(mean_of(known(outcomes, part))) for part in ("masked", "seconds", "hours")]
            counts = [len(outcomes), seed_count(outcomes), sum(outcome.collapsed for outcome in outcomes)]
            rows.append([comparison.model, name, comparison.kind, *counts, *scores, *more])
    return csv_text([heads, *rows])


def differences_csv(comparisons: Sequence[Comparison]) -> str:
    """A row a model, method and measure: mean paired difference to the baseline, interval, pairs, each seed's own."""
    heads = ["model", "method", "baseline", "measure", "mean", "low", "high", "n", "by_seed"]
    rows = []
    for comparison in comparisons:
        for d in comparison.differences:
            each = " ".join(f"{seed}:{value:+.6g}" for seed, value in d.by_seed.items())
            rows.append([comparison.model, d.method, d.baseline, d.measure, *_four(list(d.by_seed.values())), each])
    return csv_text([heads, *rows])


def comparison_markdown(comparisons: Sequence[Comparison]) -> str:
    """The table of methods and that of the differences, to paste where Markdown is read."""
    lines = []
    for comparison in comparisons:
        lines += [f"## {_md(comparison.model)}", "", _md(sentence(comparison)), ""]
        lines += ["| method | seeds | best | final | masked | time a step |", "|---|---:|---:|---:|---:|---:|"]
        for name, outcomes in comparison.methods.items():
            scores = [with_interval(known(outcomes, measure), comparison) for measure in MEASURES]
            cells = [name, str(seed_count(outcomes)), *scores, masked_text(outcomes), seconds_text(outcomes)]
            lines.append(f"| {' | '.join(map(_md, cells))} |")
        if comparison.differences:
            head = f"| less {_md(comparison.baseline)}, same seed | pairs | best | final |"
            lines += ["", head, "|---|---:|---:|---:|"]
        for name in [name for name in comparison.methods if name != comparison.baseline]:
            pair = [d for measure in MEASURES if (d := comparison.difference(name, measure)) is not None]
            cells = [name, str(len(pair[0].by_seed)), *(difference_text(d, comparison) for d in pair)]
            lines.append(f"| {' | '.join(map(_md, cells))} |")
        lines.append("")
    return "\n".join([*lines, f"{COUNTING} {INTERVALS}"]) + "\n"


def verdict(difference: Difference) -> str:
    """``higher``, ``lower``, ``undecided``, or why there is no interval."""
    values = list(difference.by_seed.values())
    if len(values) < 2:
        return "one pair: no interval" if values else NO_PAIR
    _, low, high = interval(values)
    return "higher" if low > 0 else "lower" if high < 0 else "undecided"


def _difference_sentence(difference: Difference, comparison: Comparison) -> str:
    return f"{difference.method} less {difference.baseline}: {difference_text(difference, comparison)}."


def difference_text(difference: Difference, comparison: Comparison) -> str:
    """Mean, interval and verdict."""
    values = list(difference.by_seed.values())
    if not values:
        return NO_PAIR
    mean, low, high = interval(values)
    span = f" [{signed(low, comparison)}, {signed(high, comparison)}]" if isfinite(low) else ""
    return f"{signed(mean, comparison)}{span}, {verdict(difference)}"


def with_interval(values: Sequence[float], comparison: Comparison) -> str:
    """Mean and interval, or that there is none."""
    if not values:
        return "no score"
    mean, low, high = interval(values)
    span = f"[{score_text(low, comparison)}, {score_text(high, comparison)}]" if isfinite(low) else f"({NO_INTERVAL})"
    return f"{score_text(mean, comparison)} {span}"


def kind_name(comparison: Comparison) -> str:
    return f"validation {comparison.kind}" if comparison.kind == ACCURACY else comparison.kind


def mean_of(values: Sequence[float]) -> float | None:
    return interval(values)[0] if values else None


def _four(values: Sequence[float]) -> list[str]:
    """mean, low, high, n; empty where there is none."""
    if not values:
        return ["", "", "", "0"]
    return [_number(x) if isfinite(x) else "" for x in interval(values)] + [str(len(values))]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def score_text(value: float, comparison: Comparison) -> str:
    """One decimal of a percentage, three digits of a reward."""
    text = f"{round(value, 1) + 0.0:.1f}" if comparison.kind == ACCURACY else plain(value)
    return text.replace("-", "−")


def signed(value: float, comparison: Comparison) -> str:
    text = score_text(value, comparison)
    return text if text.startswith("−") else f"+{text}"


def masked_text(outcomes: Sequence[Outcome]) -> str:
    share = mean_of(known(outcomes, "masked"))
    return ABSENT if share is None else f"{share:.2f}%"


def seconds_text(outcomes: Sequence[Outcome]) -> str:
    time = mean_of(known(outcomes, "seconds"))
    return ABSENT if time is None else f"{plain(time)} s"


def duration(hours: float) -> str:
    return f"{plain(60 * hours)} min" if hours < 1 else f"{plain(hours)} h"


def _md(text: str) -> str:
    return text.replace("|", "\\|")
