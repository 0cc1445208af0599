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
    before = set(sys.modules)

    def write(source: str = "") -> str:
        package = tmp_path / f"watched_{next(numbers)}"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "target.py").write_text(source)
        importlib.invalidate_caches()
        return f"{package.name}.target"

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("watched_"):
            del sys.modules[name]


def test_actions_wait_for_the_import_and_see_the_whole_module_in_their_order(write_module):
    name, other = write_module("first = 1\nlast = 2\n"), write_module()
    seen: list = []
    on_import(name, lambda module: seen.append((module, module.last)))
    on_import(name, lambda module: setattr(module, "last", 3))
    importlib.import_module(other)
    importlib.import_module(name.split(".")[0])
    assert importlib.util.find_spec(name) is not None  # how others ask whether a module exists
    assert seen == [] and name not in sys.modules
    module = importlib.import_module(name)
    assert seen == [(module, 2)]
    namespace: dict = {}
    exec(f"from {name} import last", namespace)
    assert namespace["last"] == 3
    assert len(seen) == 1
    on_import(name, seen.append)  # at once, on a module that is there
    assert seen[1] is module


def test_the_module_is_left_as_an_ordinary_one_by_one_finder(write_module):
    names = [write_module("value = 4\n") for _ in range(3)]
    finders = sys.meta_path.count(FINDER)
    for name in names:
        on_import(name, lambda _: None)
    module = importlib.import_module(names[0])
    assert sys.meta_path.count(FINDER) == max(finders, 1) == 1
    assert type(module.__loader__).__module__.startswith("_frozen_importlib")
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__
    assert Path(module.__file__ or "").name == "target.py"
    assert importlib.reload(module).value == 4


def test_an_exception_in_an_action_fails_the_import_and_the_next_one_acts_again(write_module):
    """Whoever catches the first error and imports again must not get the module without its registrations."""
    name = write_module()
    seen: list = []

    def broken_once(module: object) -> None:
        seen.append(module)
        if len(seen) == 1:
            raise RuntimeError("cannot register")

    on_import(name, broken_once)
    with pytest.raises(RuntimeError, match="cannot register"):
        importlib.import_module(name)
    assert name not in sys.modules
    importlib.import_module(name)
    assert len(seen) == 2


def test_a_failed_import_does_not_spend_the_action(write_module):
    """A module that cannot be imported yet, retried when it can."""
    name = write_module("import watched_missing_dependency\n")
    seen: list = []
    on_import(name, seen.append)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    sys.modules["watched_missing_dependency"] = sys
    assert seen == [importlib.import_module(name)]


def test_a_module_that_does_not_exist_stays_missing(write_module):
    on_import("watched_never_written", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="watched_never_written"):
        importlib.import_module("watched_never_written")
