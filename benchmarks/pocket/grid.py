"""The grid of runs: what grid.yaml asks for, in several processes, resumable, every run into one table a study."""

import gzip
import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import torch
import yaml

from benchmarks.pocket import Row
from cppo_verl import atomic, presets

GRID = Path(__file__).with_name("grid.yaml")
TABLE = "results.csv.gz"
RUN = "all"  # in the column ``step``: the line of a whole run, beside those of its evaluations
SECONDS_BETWEEN_WRITES = 20.0  # a killed grid repeats the runs since the last write


class Spec(NamedTuple):
    """One run; ``setting`` and ``rule`` are names in the grid."""

    setting: str
    rule: str
    seed: int


def load(quick: bool, file: Path = GRID) -> dict[str, Any]:
    """A grid's file with settings resolved; ``quick`` shrinks it."""
    grid = yaml.safe_load(file.read_text(encoding="utf-8"))
    shrink = grid["quick"]["override"] if quick else {}
    grid["settings"] = {
        name: {**grid["base"][own["base"]], **{k: v for k, v in own.items() if k != "base"}, **shrink}
        for name, own in grid["settings"].items()
    }
    if quick:
        grid["seeds"], grid["extra_seeds"] = grid["quick"]["seeds"], []
        grid["plan"] = [{k: grid["quick"][k] for k in ("settings", "rules")}]
    return grid


def trial(grid: dict[str, Any], tried: list[str], seeds: int) -> dict[str, Any]:
    """A grid that compares presets with CPPO and DPPO on ``branch`` and ``trace``, the first ``seeds`` seeds.

    Args:
        tried: names of presets, or their files: ``FOLDER/trust_region/NAME.yaml``.

    Raises:
        ValueError: a preset that is not there, or has the name of a rule of the grid.
    """
    rules = {name: grid["rules"][name] for name in ("cppo", "dppo")}
    for each in tried:
        file = Path(each).resolve() if each.endswith(".yaml") else None
        name, folders = (file.stem, [file.parents[1]]) if file else (each, [])
        if presets.find(name, folders) is None:
            raise ValueError(f"--try {each}: no such preset; there are {', '.join(presets.names(folders))}")
        if name in rules:
            raise ValueError(f"--try {each}: {name} is what others are compared with")
        rules[name] = {"preset": name, **({"folder": str(folders[0])} if folders else {})}
    own = [name for name in rules if name not in ("cppo", "dppo")]
    settings = [name for name in ("branch", "trace") if name in grid["settings"]]
    claims = [
        {"claim": f"{name} beats {other}", "kind": "greater", "contrasts": [[s, name, other] for s in settings]}
        for name in own
        for other in ("cppo", "dppo")
    ]
    every = [*grid["seeds"], *grid["extra_seeds"]][:seeds]
    plan = [{"settings": settings, "rules": "all"}]
    return {**grid, "rules": rules, "seeds": every, "extra_seeds": [], "plan": plan, "claims": claims, "drawn": own}


def specs(grid: dict[str, Any]) -> Iterator[Spec]:
    """All runs, so ordered that an interrupted grid has whole comparisons: part by part, then the extra seeds.

    Two seeds go side by side, so that two processes do not wait for the same warm start.
    """
    pairs, extra = (
        [seeds[i : i + 2] for i in range(0, len(seeds), 2)] for seeds in (grid["seeds"], grid["extra_seeds"])
    )
    order = [(part, pair) for part in grid["plan"] for pair in pairs]
    order += [(part, pair) for pair in extra for part in grid["plan"]]
    for part, pair in order:
        for setting in part["settings"]:
            for rule in grid["rules"] if part["rules"] == "all" else part["rules"]:
                yield from (Spec(setting, rule, seed) for seed in pair if seed in part.get("seeds", pair))


def fingerprint(grid: dict[str, Any], spec: Spec) -> str:
    """Eight hex digits of all that a run depends on."""
    text = json.dumps([grid["settings"][spec.setting], grid["rules"][spec.rule], spec.seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def summary(curve: list[Row]) -> Row:
    """A run's line: scores, and means of everything else over its evaluations."""
    scores = [row["score"] for row in curve[1:]]
    found: Row = {"start": curve[0]["score"], "best": max(scores), "final": scores[-1]}
    found |= {"mean": sum(scores) / len(scores), "kept": float(scores[-1] >= max(scores) / 2)}
    for name in dict.fromkeys(k for row in curve[1:] for k in row if k not in ("step", "score")):
        values = [row[name] for row in curve[1:] if name in row]
        found[name] = sum(values) / len(values)
    return found


def read(out: Path) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """A line a run, and a line an evaluation of one; both empty when there is no table."""
    file = out / TABLE
    if not file.exists():
        return pandas.DataFrame(), pandas.DataFrame()
    table = pandas.read_csv(file, dtype={"step": str, "spec": str}, low_memory=False)
    whole = table.step == RUN
    return tuple(
        part.dropna(axis="columns", how="all").reset_index(drop=True) for part in (table[whole], table[~whole])
    )


def write(out: Path, runs: pandas.DataFrame, curves: pandas.DataFrame) -> None:
    """Both in one table; numbers with six digits, and the same bytes for the same numbers."""
    text = pandas.concat([runs, curves], ignore_index=True).to_csv(index=False, float_format="%.6g")
    atomic.write(out / TABLE, gzip.compress(text.encode(), mtime=0))


def execute(grid: dict[str, Any], out: Path, processes: int, device: str, minutes: float) -> None:
    """Run what ``out`` does not hold yet; nothing new is begun after ``minutes``.

    Raises:
        ValueError: ``out`` holds runs of another grid.
    """
    out.mkdir(parents=True, exist_ok=True)
    runs, curves = (part.to_dict("records") for part in read(out))
    done = {Spec(r["setting"], r["rule"], int(r["seed"])): r["spec"] for r in runs}
    changed = [s for s in specs(grid) if s in done and done[s] != fingerprint(grid, s)]
    if changed:
        raise ValueError(f"{out} has runs of another grid ({len(changed)}), e.g. {changed[0]}; use another --out")
    todo = [s for s in specs(grid) if s not in done]
    if not todo:
        return
    written = -SECONDS_BETWEEN_WRITES  # the first run at once
    start, context = time.monotonic(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_begin_worker) as pool:
        futures: dict[Future, Spec] = {}
        for s in todo:
            given = grid["settings"][s.setting], grid["rules"][s.rule], s.seed, out / "warm", device
            futures[pool.submit(_timed, *given)] = s
        for count, future in enumerate(as_completed(futures), 1):
            if future.cancelled():
                continue
            s, (curve, seconds) = futures[future], future.result()
            whole = {"step": RUN, "spec": fingerprint(grid, s), "seconds": seconds}
            runs.append({**s._asdict(), **whole, **summary(curve)})
            curves += [{**s._asdict(), **row} for row in curve]
            spent = time.monotonic() - start
            if spent - written > SECONDS_BETWEEN_WRITES:
                write(out, pandas.DataFrame(runs), pandas.DataFrame(curves))
                written = spent
            left = spent / count * (len(todo) - count) / 60
            print(f"{count}/{len(todo)} {'/'.join(map(str, s))} {seconds:.1f} s, about {left:.1f} min left", flush=True)
            if spent > 60 * minutes:
                pool.shutdown(wait=False, cancel_futures=True)
    write(out, pandas.DataFrame(runs), pandas.DataFrame(curves))


def _begin_worker() -> None:
    """One thread for torch; and a worker ends with its parent, whatever ended that."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _timed(setting: Row, rule: Row, seed: int, cache: Path, device: str) -> tuple[list[Row], float]:
    from benchmarks.pocket.train import run  # and with it verl, which the process that hands out runs does not need

    begin = time.process_time()
    curve = run(setting, rule, seed, cache, device)
    return curve, time.process_time() - begin
