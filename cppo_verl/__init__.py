"""CPPO (arXiv 2606.10968) and the trust regions it is compared with, as a plug-in for verl.

The rooms, from the ground up; each imports only from rooms above it in this list:

    atomic, presets  files that appear whole; the presets' names (conf/ holds them)
    trust_region     the science: divergences, rules, budgets, gates, loss, metrics; torch and numpy only
    recording        single tokens of a run: records, replay of any rule, thresholds from data
    launch           starts and guards a run
    integration      the plug into verl
    paper            the paper's numbers
    reporting        reads logs: pages, tables, figures
    inspection       reads records: the page of tokens
    evaluation       Avg@N of a checkpoint
    doctor           would a run start on this machine
    selftest         acceptance of a machine
    cli              the commands, thin

Importing this package is free.
"""

import importlib.abc
import sys

__version__ = "0.1.0"

_SCIENCE = ("divergence", "schedule", "budget", "rules", "surrogate", "metrics", "advantage", "bound", "topk")
_LAUNCH = ("supervise", "checkpoints", "exposure", "gitstate", "command_line")
MOVED = {
    **{f"{__name__}.{name}": f"{__name__}.trust_region.{name}" for name in _SCIENCE},
    **{f"{__name__}.{name}": f"{__name__}.launch.{name}" for name in _LAUNCH},
    f"{__name__}.config": f"{__name__}.trust_region.knobs",
}


class _Moved(importlib.abc.MetaPathFinder):
    """Says where a module went that stood at the package's root in 0.1."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname in MOVED:
            raise ImportError(f"{fullname} is now {MOVED[fullname]}", name=fullname)


sys.meta_path.append(_Moved())
