"""Compares answers with math-verify, one in a process of its own; math_reward.py starts it and talks to it in lines.

Reads one JSON object a line (truth, pred, time_limit in seconds, memory_limit_mib) and answers each with a line:
"equal", "different", or "bounded" where the comparison ran out of time or memory or crashed (a MemoryError that
math-verify itself catches comes out as "different"). Each comparison happens in a fork with the default action for
SIGALRM, which ends it even inside C code; it may not write files, nor, unless it is root's, start processes. Ends at
the end of its input.
"""

import json
import os
import resource
import signal
import sys

from math_verify.grader import verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig, parse

EQUAL, DIFFERENT, BOUNDED = 10, 11, 12
WORDS = {EQUAL: "equal", DIFFERENT: "different"}
TARGETS = (LatexExtractionConfig(), ExprExtractionConfig())


def are_equal(truth: str, pred: str) -> bool:
    """math-verify's verdict, without its own time limits, which need signals of their own."""
    gold, answer = (parse(f"\\boxed{{{text}}}", TARGETS, parsing_timeout=None) for text in (truth, pred))
    return bool(gold and answer and verify(gold, answer, timeout_seconds=None))


def set_limits(seconds: float, memory_mib: int) -> None:
    """End this process after ``seconds``; refuse it memory, files and processes beyond."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    limits = {resource.RLIMIT_AS: memory_mib << 20, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for limit, value in (limits | {resource.RLIMIT_NPROC: 0}).items():
        resource.setrlimit(limit, (value, value))


def run_alone(request: dict) -> str:
    """Compare in a fork; how it ended tells the outcome."""
    child = os.fork()
    if child == 0:
        status = BOUNDED
        try:
            set_limits(request["time_limit"], request["memory_limit_mib"])
            status = EQUAL if are_equal(request["truth"], request["pred"]) else DIFFERENT
        except MemoryError:
            pass
        except Exception:
            status = DIFFERENT
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return WORDS.get(os.waitstatus_to_exitcode(ended), "bounded")


def main() -> None:
    """Answer requests until the input ends; what the first comparison builds (regexes, tables) is built before."""
    are_equal("1", "\\frac{2}{2} + x")
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        print(run_alone(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
