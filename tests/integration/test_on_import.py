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
    """Writes a module with the given source inside a package, under a name never used before; returns the full name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(FINDER, "actions", dict(FINDER.actions))

    def write(source: str = "") -> str:
        package = tmp_path / f"watched_{next(numbers)}"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "target.py").write_text(source)
        importlib.invalidate_caches()
        return f"{package.name}.target"

    yield write
    for name in [name for name in sys.modules if name.startswith("watched_")]:
        del sys.modules[name]


def test_actions_wait_for_the_import_see_the_whole_module_and_leave_an_ordinary_one(write_module):
    name, other = write_module("first = 1\nlast = 2\n"), write_module()
    seen: list = []
    on_import(name, lambda module: seen.append((module, module.last)))
    on_import(name, lambda module: setattr(module, "last", 3))
    importlib.import_module(other)
    assert importlib.util.find_spec(name) is not None  # how others ask whether a module exists
    assert seen == [] and name not in sys.modules
    module = importlib.import_module(name)
    assert seen == [(module, 2)] and module.last == 3
    assert importlib.import_module(name) is module and len(seen) == 1
    on_import(name, seen.append)  # at once, on a module that is there
    assert seen[1] is module
    assert sys.meta_path.count(FINDER) == 1
    assert type(module.__loader__).__module__.startswith("_frozen_importlib")
    assert module.__spec__.loader is module.__loader__ and "exec_module" not in vars(module.__loader__)
    assert Path(module.__file__).name == "target.py"
    assert importlib.reload(module).last == 2 and len(seen) == 2


@pytest.mark.parametrize("source", ["", "import watched_missing_dependency\n"])
def test_a_failed_import_does_not_spend_the_action(write_module, source):
    """Whoever catches the first error and imports again must not get the module without its registrations."""
    name = write_module(source)
    seen: list = []

    def broken_once(module: object) -> None:
        seen.append(module)
        if not source and len(seen) == 1:
            raise ModuleNotFoundError("cannot register")

    on_import(name, broken_once)
    with pytest.raises(ModuleNotFoundError, match="cannot register|watched_missing"):
        importlib.import_module(name)
    assert name not in sys.modules
    sys.modules["watched_missing_dependency"] = sys
    assert importlib.import_module(name) is seen[-1]
    assert len(seen) == (1 if source else 2)


def test_a_module_that_does_not_exist_stays_missing(write_module):
    on_import("watched_never_written", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="watched_never_written"):
        importlib.import_module("watched_never_written")
