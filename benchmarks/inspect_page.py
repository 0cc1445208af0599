"""How large the page of ``cppo-verl inspect`` is and how long a browser takes to open it.

    python -m benchmarks.inspect_page                      # 60 steps x 16 responses x 2000 tokens
    python -m benchmarks.inspect_page --steps 1 --responses 1 --length 100000

Makes a record of random tokens as the rule decides on them (some words, many small divergences and a few large ones),
writes the page, and opens it from the disk in a headless Chromium with a fresh profile, several times. Printed are
medians, from the start of the navigation: the first response is on the screen; the whole page is read; and then, from
a key to the paint after it, another response, unpacked at that moment.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.browser import chromium, missing, screen
from cppo_verl.inspection.page import write_page
from cppo_verl.recording import files, numbers
from cppo_verl.recording.record import Header, Look, Response, StepRecord
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import evaluate
from cppo_verl.trust_region.tokens import Tokens

WORDS = (
    "The", " sum", " of", " the", " first", " two", " numbers", " is", " 1", "2", " +", " 7", " =", " 19", ".", " So",
    " we", " have", ",", " and", " then", " x", "^", "2", " must", " be", " even", ".\n", " Let", " me", " check", ":",
    " that", " gives", " 3", "8", "\n\n", " Therefore", " it", " follows", "", "é", " &", " <", "答", "\t",
)  # fmt: skip


def step_record(step: int, responses: int, length: int, rule: str = "cppo", group: int = 8, **knobs) -> StepRecord:
    """``responses`` of ``length`` tokens, in groups."""
    rng = np.random.default_rng(step)
    chosen = TrustRegionKnobs(**knobs)
    log_mu = -(rng.gamma(0.35, 1.2, size=(responses, length)).astype(np.float32))
    wide = rng.random((responses, length)) < 0.02
    shift = rng.normal(0, np.where(wide, 0.7, 0.03)) * np.minimum(1, 0.05 - log_mu)
    log_pi = np.minimum(log_mu + shift, -1e-7).astype(np.float32)
    advantages = np.repeat(rng.normal(size=(responses, 1)), length, axis=1).astype(np.float32)
    mask = np.ones((responses, length), dtype=bool)
    tokens = Tokens.of(*map(torch.from_numpy, (log_pi, log_mu, advantages, mask)))
    verdict, _ = evaluate(rule, tokens, chosen)
    gate, cause = (x.numpy() for x in numbers.gate_and_cause(tokens, verdict, chosen.ratio_cap))
    made = []
    for row in range(responses):
        ids = rng.integers(len(WORDS), size=length).astype(np.int32)
        made.append(
            Response(
                uid=f"prompt-{step}-{row // group}",
                sample=row % group,
                prompt=f"Find the sum of the digits of {step}{row // group}.",
                prompt_ids=np.arange(12, dtype=np.int32),
                pieces=[WORDS[i] for i in ids],
                token_ids=ids + 151_000,
                mask=mask[row],
                log_mu=log_mu[row],
                advantages=advantages[row],
                reward=float(advantages[row, 0] > 0),
                versions_behind=0,
                width=length,
                first=Look(log_pi[row], gate[row], cause[row], update=row % 4),
            )
        )
    header = Header(step, rule, dataclasses.asdict(chosen), vocabulary=len(WORDS), responses=128, updates=4)
    return StepRecord(header, tuple(made))


def open_times(driver, page: Path, rounds: int) -> dict[str, float]:
    """Medians in seconds: first response shown, page read, another response shown."""
    shown, read, turned = [], [], []
    for _ in range(rounds):
        driver.get("about:blank")
        driver.get(page.resolve().as_uri())
        driver.set_script_timeout(60)
        driver.execute_async_script(_WHEN_SHOWN)
        mark, load = driver.execute_script(_MARKS)
        shown.append(mark / 1e3)
        read.append(load / 1e3)
        took = driver.execute_async_script(_TURN)
        turned.append(took / 1e3)
    return {name: statistics.median(x) for name, x in (("shown", shown), ("read", read), ("turned", turned))}


_WHEN_SHOWN = """
const done = arguments[arguments.length - 1];
(function look() {
  if (document.body.dataset.shown === undefined) return setTimeout(look, 5);
  requestAnimationFrame(() => setTimeout(done));
})();
"""
_MARKS = """
return [performance.getEntriesByName("shown")[0].startTime, performance.getEntriesByType("navigation")[0].loadEventEnd];
"""
_TURN = """
const done = arguments[arguments.length - 1], before = document.body.dataset.shown, start = performance.now();
document.dispatchEvent(new KeyboardEvent("keydown", {key: "j"}));
if (document.querySelectorAll("#list li").length < 2) done(NaN);
(function look() {
  if (document.body.dataset.shown === before) return setTimeout(look);
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})();
"""


def main() -> None:
    """Print sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--responses", type=int, default=16)
    parser.add_argument("--length", type=int, default=2000)
    parser.add_argument("--rule", default="cppo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder for the record and the page (default: a temporary one)")
    args = parser.parse_args()
    if missing():
        sys.exit(missing())
    with tempfile.TemporaryDirectory() as folder:
        run = args.keep or Path(folder)
        for step in range(1, args.steps + 1):
            files.write(run, step_record(step, args.responses, args.length, args.rule))
        page = run / "report" / "inspect.html"
        start = time.perf_counter()
        index = write_page(run, page)
        took = time.perf_counter() - start
        tokens, record = sum(index.columns["length"]), sum(path.stat().st_size for path in files.steps(run).values())
        print(f"{index.responses} responses, {tokens} tokens; record {record / 1e6:.1f} MB")
        size = page.stat().st_size
        print(f"page {size / 1e6:.1f} MB, {size / tokens:.1f} bytes a token, written in {took:.1f} s")
        with chromium() as driver:
            screen(driver)
            times = open_times(driver, page, args.rounds)
            print(f"Chromium {driver.capabilities['browserVersion']}, median of {args.rounds}:")
        for name, words in (("shown", "first response shown"), ("read", "page read"), ("turned", "another response")):
            print(f"  {words:<22}{times[name]:6.2f} s")


if __name__ == "__main__":
    main()
