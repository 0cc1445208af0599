"""How large the page of ``cppo-verl inspect`` is and how long a browser takes to open it.

    python -m benchmarks.inspect_page                      # 60 steps x 16 responses x 2000 tokens
    python -m benchmarks.inspect_page --steps 1 --responses 1 --length 100000

Makes a record of random tokens as the rule decides on them (some words, many small divergences and a few large ones),
writes the page, and opens it from the disk in a headless Chromium with a fresh profile, several times. Printed are
medians, from the start of the navigation until the first response is on the screen.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.browser import chromium, missing, screen
from cppo_verl.inspection.page import write_page
from cppo_verl.recording import files
from tests.inspection.records import sentence, step_record

WHEN_SHOWN = """
const done = arguments[arguments.length - 1];
(function look() {
  if (document.body.dataset.shown === undefined) return setTimeout(look, 5);
  requestAnimationFrame(() => setTimeout(done));
})();
"""


def main() -> None:
    """Print sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 60), ("responses", 16), ("length", 2000), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    if missing():
        sys.exit(missing())
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        for step in range(1, args.steps + 1):
            texts = [sentence(args.length, args.responses * step + i) for i in range(args.responses)]
            files.write(run, step_record(texts, step=step, rule="cppo", moved=None, group=8))
        page = run / "report" / "inspect.html"
        start = time.process_time()
        index = write_page(run, page)
        took, size = time.process_time() - start, page.stat().st_size
        tokens, record = sum(index.columns["length"]), sum(path.stat().st_size for path in files.steps(run).values())
        print(f"{len(index.chunks)} responses, {tokens} tokens; record {record / 1e6:.1f} MB")
        print(f"page {size / 1e6:.1f} MB, {size / tokens:.1f} bytes a token, written in {took:.1f} CPU s")
        times = []
        with chromium() as driver:
            screen(driver)
            driver.set_script_timeout(60)
            for _ in range(args.rounds):
                driver.get("about:blank")
                driver.get(page.resolve().as_uri())
                driver.execute_async_script(WHEN_SHOWN)
                times.append(driver.execute_script('return performance.getEntriesByName("shown")[0].startTime'))
            version = driver.capabilities["browserVersion"]
        print(f"Chromium {version}, median of {args.rounds}: shown after {statistics.median(times) / 1e3:.2f} s")


if __name__ == "__main__":
    main()
