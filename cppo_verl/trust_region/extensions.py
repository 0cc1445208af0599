"""Rules from outside: found by an entry point of an installed package, or by the file or module that a run names.

A module brings its rules by registering them when it is imported (``rules.rule``). Every process of a run has to import
it: the entry points are loaded wherever rules are needed, a named module wherever the run's knobs are made.
"""

import functools
import importlib
import importlib.util
import logging
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import ModuleType

from cppo_verl.presets import RULES_GROUP
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError
from cppo_verl.trust_region.rules import BUILT_IN, CAPABILITIES, RULES, VERL_LOSSES

KEY = f"{KEY_PREFIX}.rule_module"

_PACKAGE = Path(__file__).parents[1]

logger = logging.getLogger(__name__)


def bring(loss_mode: str, rule_module: str | None) -> None:
    """Have the rule in this process, if it comes from outside and is there at all.

    Raises:
        KnobError: ``rule_module`` cannot be imported.
    """
    if rule_module:
        load(rule_module)
    if loss_mode not in RULES:
        load_installed()


@functools.cache
def load_installed() -> dict[str, str]:
    """Import what installed packages name in the entry-point group ``cppo_verl.rules``, once a process.

    Returns:
        By entry point, why it brought no rule; a broken package must not end the runs that do not use it.
    """
    failed = {}
    for entry in metadata.entry_points(group=RULES_GROUP):
        try:
            _import(entry.module)
        except Exception as error:  # noqa: BLE001 - it is somebody else's code
            failed[entry.name] = f"{entry.value}: {_said(error)}"
            logger.warning("rules of entry point %s in group %s: %s", entry.name, RULES_GROUP, failed[entry.name])
    return failed


def load(where: str) -> ModuleType:
    """Import the module that ``rule_module`` names: a path that ends in ``.py``, or a module's name; once a process.

    Raises:
        KnobError: it cannot be found or imported, or a rule of it has a name that is taken.
    """
    try:
        return _import(where)
    except Exception as error:
        raise KnobError(
            f"{KEY}={where} cannot be imported on {socket.gethostname()}: {_said(error)}. "
            "Give the path of a .py file, or the name of a module, that every process of the run can read."
        ) from error


def resolve(where: str, folders: Iterable[Path]) -> str:
    """The absolute path of a ``.py`` file that lies in one of ``folders``, the first that has it; else as it is."""
    if not where.endswith(".py"):
        return where
    candidates = (folder / os.path.expanduser(where) for folder in folders)
    return next((str(path.resolve()) for path in candidates if path.is_file()), where)


def unknown_rule(name: str, module: str | None) -> str:
    """What to say of a ``loss_mode`` that is no rule though ``module``, the ``rule_module``, was imported."""
    said = f"{KEY_PREFIX}.loss_mode={name!r} is not one of {', '.join([*RULES, *VERL_LOSSES])}."
    if module:
        found = [rule for rule, function in RULES.items() if function.__module__ == load(module).__name__]
        said += f" {KEY}={module} defines {', '.join(found) or 'no rule'}: put @rule({name!r}) over the function."
    for entry, reason in load_installed().items():
        said += f" The entry point {entry} could not be loaded: {reason}."
    return said


def from_outside() -> dict[str, str]:
    """The rules that are not ours: name -> module."""
    return {name: function.__module__ for name, function in RULES.items() if name not in BUILT_IN}


def _import(where: str) -> ModuleType:
    """The module of that name or file; one that fails half-way leaves nothing."""
    before, name = set(RULES), where
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = str(Path(where).expanduser().resolve())
        name = "rules" + re.sub(r"\W", "_", path)
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None and spec.loader is not None  # it ends in .py
            sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for their own module
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]
    except BaseException:
        sys.modules.pop(name, None)
        for each in set(RULES) - before:
            del RULES[each], CAPABILITIES[each]
        raise


def _said(error: Exception) -> str:
    """Kind, message and place of what a module raised while it was imported."""
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    theirs = [place for place in places if "importlib" not in str(place[0]) and _PACKAGE not in place[0].parents]
    where = f" ({theirs[-1][0].name}:{theirs[-1][1]})" if theirs else ""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".") + where
