"""Scores answers with those scorers of reasoning-gym that evaluate them; reasoning_gym_reward.py starts it.

Reads one JSON object a line (answer, entry, time_limit in seconds, memory_limit_mib beyond what this process has) and
answers each with a line: the marks, or "bounded" where the scorer ran out of time or memory or crashed. Each answer is
scored in a fork with limits that end it even inside C code; it may not write files, nor, unless it is root's, start
processes. Ends at the end of its input.
"""

import json
import os
import sys
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_prep import reasoning_gym_reward  # noqa: E402 - this file is started by its path
from data_prep.math_verify_server import set_limits  # noqa: E402


def score_alone(request: dict) -> str:
    """Score in a fork; its marks come through a pipe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            held = psutil.Process().memory_info().vms >> 20
            set_limits(request["time_limit"], held + request["memory_limit_mib"])
            entry = request["entry"]
            marks = reasoning_gym_reward.marks_of(entry["metadata"]["source_dataset"], request["answer"], entry)
            os.write(writing, str(marks).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said or "bounded"


def main() -> None:
    """Answer requests until the input ends."""
    for task in ("countdown", "simple_integration"):  # imports sympy and what it builds at first use, before any fork
        reasoning_gym_reward.marks_of(task, "1 + 1", {"answer": "2", "metadata": {}})
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        print(score_alone(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
