"""The grid of runs: what grid.yaml asks for, in several processes, resumable, every run into one table a study."""

import gzip
import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import torch
import yaml

from cppo_verl import atomic, presets

GRID = Path(__file__).with_name("grid.yaml")
TABLE = "results.csv.gz"
RUN = "all"  # in the column ``step``: the line of a whole run, beside those of its evaluations


class Spec(NamedTuple):
    """One run, by names in the grid."""

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
        grid |= {"seeds": grid["quick"]["seeds"], "extra_seeds": [], "plan": [grid["quick"]]}
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
    plan, every = [{"settings": settings, "rules": "all"}], [*grid["seeds"], *grid["extra_seeds"]][:seeds]
    return {**grid, "rules": rules, "seeds": every, "extra_seeds": [], "plan": plan, "claims": claims, "drawn": own}


def specs(grid: dict[str, Any]) -> Iterator[Spec]:
    """All runs, so ordered that an interrupted grid has whole comparisons: part by part, then the extra seeds."""
    order = [(part, seed) for part in grid["plan"] for seed in grid["seeds"]]
    order += [(part, seed) for seed in grid["extra_seeds"] for part in grid["plan"]]
    for part, seed in order:
        if seed in part.get("seeds", [seed]):
            rules = grid["rules"] if part["rules"] == "all" else part["rules"]
            yield from (Spec(setting, rule, seed) for setting in part["settings"] for rule in rules)


def fingerprint(grid: dict[str, Any], spec: Spec) -> str:
    """Eight hex digits of all that a run depends on."""
    text = json.dumps([grid["settings"][spec.setting], grid["rules"][spec.rule], spec.seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read(out: Path) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """A line a run, and a line an evaluation of one; both empty when there is no table."""
    file = out / TABLE
    if not file.exists():
        return pandas.DataFrame(), pandas.DataFrame()
    table = pandas.read_csv(file, dtype={"step": str, "spec": str}, low_memory=False)
    runs, curves = (table[kind].dropna(axis="columns", how="all") for kind in (table.step == RUN, table.step != RUN))
    return runs.reset_index(drop=True), curves.reset_index(drop=True)


def write(out: Path, runs: pandas.DataFrame, curves: pandas.DataFrame) -> None:
    """Both in one table; numbers with six digits, and the same bytes for the same numbers."""
    text = pandas.concat([runs, curves], ignore_index=True).to_csv(index=False, float_format="%.6g")
    atomic.write(out / TABLE, gzip.compress(text.encode(), mtime=0))


def execute(grid: dict[str, Any], out: Path, processes: int) -> None:
    """Run what ``out`` does not hold yet.

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
    began = time.monotonic()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin_worker) as pool:
        futures = {
            pool.submit(_timed, grid["settings"][s.setting], grid["rules"][s.rule], s.seed, out): s for s in todo
        }
        for count, future in enumerate(as_completed(futures), 1):
            s, (curve, seconds) = futures[future], future.result()
            runs.append({**s._asdict(), "step": RUN, "spec": fingerprint(grid, s), "seconds": seconds, **_whole(curve)})
            curves += [{**s._asdict(), **row} for row in curve]
            write(out, pandas.DataFrame(runs), pandas.DataFrame(curves))
            left = (time.monotonic() - began) / count * (len(todo) - count) / 60
            print(f"{count}/{len(todo)} {'/'.join(map(str, s))} {seconds:.1f} s, about {left:.1f} min left", flush=True)


def _whole(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """A run's line: scores, and means of everything else over its evaluations."""
    scores = [row["score"] for row in curve[1:]]
    found = {"start": curve[0]["score"], "best": max(scores), "final": scores[-1]}
    found |= {"mean": sum(scores) / len(scores), "kept": float(scores[-1] >= max(scores) / 2)}
    for name in dict.fromkeys(k for row in curve[1:] for k in row if k not in ("step", "score")):
        values = [row[name] for row in curve[1:] if name in row]
        found[name] = sum(values) / len(values)
    return found


def _begin_worker() -> None:
    """One thread for torch; and a worker ends with its parent, whatever ended that."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _timed(setting: dict[str, Any], rule: dict[str, Any], seed: int, out: Path) -> tuple[list[dict[str, Any]], float]:
    from benchmarks.pocket.train import run  # and with it verl, which the process that hands out runs does not need

    began = time.process_time()
    return run(setting, rule, seed, out / "warm"), time.process_time() - began
