"""A replay (``recording.replay``) as a table for the console, CSV, Markdown and a small page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cppo_verl import atomic
from cppo_verl.recording.replay import POSITIONS, Replay, Tally
from cppo_verl.reporting.template import render
from cppo_verl.reporting.text import ABSENT, csv_text, percent

HEADS = ("rule", "masked", "own threshold", "prefix budget", "A > 0", "A < 0", "first tenth", "last tenth",
         "weight cut")  # fmt: skip


@dataclass(frozen=True)
class Told:
    """A replay and what is said around it: ``run``, what was replayed, and notes such as which rules were left out."""

    result: Replay
    run: str
    scope: str
    notes: Sequence[str] = ()

    @property
    def detail(self) -> str:
        """What the shares are shares of, and whether the rule that ran gives what was recorded."""
        r = self.result
        looks = f" ({r.looks:,} looks)" if r.looks > r.responses else ""
        said = f"{self.scope}: {r.tokens:,} counted tokens of {r.responses:,} responses{looks} in {r.groups:,} groups. "
        ran = next((tally for tally in r.tallies if tally.candidate.ran), None)
        if ran is None or not r.recorded_tokens:
            return said
        agrees = f"gives the recorded gate at all {r.recorded_tokens:,} tokens."
        differs = f"differs from the recorded gates at {ran.differs:,} of {r.recorded_tokens:,} tokens."
        return f"{said}Replay of the rule that ran {differs if ran.differs else agrees}"


def cells(result: Replay, tally: Tally) -> list[str]:
    """A row under ``HEADS``."""
    tenths, there = tenths_of(result, tally), result.by_position
    parts = (tally.removed, tally.token, tally.prefix, tally.positive, tally.negative)
    ends = [percent(tenths[i]) if there[i] else ABSENT for i in (0, -1)]
    shares = [percent(result.share(part)) for part in parts]
    return [tally.candidate.name, *shares, *ends, percent(result.share(tally.capped))]


def tenths_of(result: Replay, tally: Tally) -> list[float]:
    return [float(x / n) if n else 0.0 for x, n in zip(tally.by_position, result.by_position, strict=True)]


def text(told: Told) -> str:
    """The table for the console, without the overlaps."""
    rows = [list(HEADS), *(cells(told.result, tally) for tally in told.result.tallies)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([told.detail, "", *lines])


def rules_csv(result: Replay) -> str:
    """A row a rule: shares of the counted tokens, of each tenth, and how many gates are not those recorded."""
    heads = ["rule", "loss_mode", "masked", "token_threshold", "prefix_budget", "positive", "negative", "capped"]
    heads += [f"masked_by_position_{i}" for i in range(POSITIONS)] + ["tokens", "differs_from_recorded"]
    rows = []
    for tally in result.tallies:
        shares = [tally.removed, tally.token, tally.prefix, tally.positive, tally.negative, tally.capped]
        tenths = [share if n else "" for share, n in zip(tenths_of(result, tally), result.by_position, strict=True)]
        names = [tally.candidate.name, tally.candidate.rule]
        rows.append([*names, *map(result.share, shares), *tenths, result.tokens, tally.differs])
    return csv_text(heads, rows)


def overlap_csv(result: Replay) -> str:
    """A row a pair of rules: tokens that each masks, that both mask, and both of either."""
    rows = []
    for i, one in enumerate(result.tallies):
        for j, other in enumerate(result.tallies[:i]):
            names = [other.candidate.name, one.candidate.name]
            rows.append([*names, other.touched, one.touched, int(result.both[i, j]), result.overlap(i, j)])
    return csv_text(["rule", "other", "masked", "masked_by_other", "masked_by_both", "overlap"], rows)


def write(told: Told, out: Path) -> list[Path]:
    """Write replay.csv, replay-overlap.csv, replay.md and replay.html to ``out``, each whole; their paths."""
    result = told.result
    rows = [(cells(result, tally), tenths_of(result, tally)) for tally in result.tallies]
    most = max([1e-12, *(share for _, tenths in rows for share in tenths)])
    masking = [i for i, tally in enumerate(result.tallies) if tally.touched]
    # a row a rule that masks anything: of the tokens that it or another masks the share both do
    overlaps = [(result.tallies[i].candidate.name, [result.overlap(i, j) for j in masking]) for i in masking]
    said = {"told": told, "heads": HEADS, "rows": rows, "most": most, "overlaps": overlaps}
    texts = {
        "replay.csv": rules_csv(result),
        "replay-overlap.csv": overlap_csv(result),
        "replay.md": render("replay.md", **said),
        "replay.html": render("replay.html", title=f"What each rule would have masked: {told.run}", **said),
    }
    for name, content in texts.items():
        atomic.write(out / name, content)
    return [out / name for name in texts]
