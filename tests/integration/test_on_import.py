"""Deferred actions on modules that are written to disk for the purpose and imported for real."""

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cppo_verl.integration.on_import import FINDER, on_import

numbers = itertools.count()


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module with the given source under a name never used before; returns the name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(FINDER, "actions", dict(FINDER.actions))

    def write(source: str = "") -> str:
        name = f"watched_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    yield write
    for name in [name for name in sys.modules if name.startswith("watched_")]:
        del sys.modules[name]


def test_actions_wait_for_the_import_see_the_whole_module_and_leave_an_ordinary_one(write_module):
    name = write_module("first = 1\nlast = 2\n")
    seen: list = []
    on_import(name, lambda module: seen.append((module, module.last)))
    on_import(name, lambda module: setattr(module, "last", 3))
    assert importlib.util.find_spec(name) is not None  # how others ask whether a module exists
    assert seen == [] and name not in sys.modules
    module = importlib.import_module(name)
    assert seen == [(module, 2)] and module.last == 3
    on_import(name, seen.append)  # at once, on a module that is there
    assert seen[1] is module
    assert "exec_module" not in vars(module.__loader__)
    assert importlib.reload(module).last == 2 and len(seen) == 2


def test_a_failed_action_fails_the_import_and_is_not_spent(write_module):
    """Whoever catches the first error and imports again must not get the module without its registrations."""
    name = write_module()
    seen: list = []

    def broken_once(module: object) -> None:
        seen.append(module)
        if len(seen) == 1:
            raise ModuleNotFoundError("cannot register")

    on_import(name, broken_once)
    with pytest.raises(ModuleNotFoundError, match="cannot register"):
        importlib.import_module(name)
    assert name not in sys.modules
    assert importlib.import_module(name) is seen[-1] and len(seen) == 2
