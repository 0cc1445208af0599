"""Deferred actions on modules that are written to disk for the purpose and imported for real."""

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cppo_verl.integration.on_import import on_import

numbers = itertools.count()


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module with the given source inside a package, under a name never used before; returns the full name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before, finders = set(sys.modules), list(sys.meta_path)

    def write(source: str) -> str:
        package = tmp_path / f"watched_{next(numbers)}"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "target.py").write_text(source)
        importlib.invalidate_caches()
        return f"{package.name}.target"

    yield write
    sys.meta_path[:] = finders
    for name in set(sys.modules) - before:
        if name.startswith("watched_"):
            del sys.modules[name]


def test_action_waits_for_the_import_and_sees_the_whole_module(write_module):
    name = write_module("first = 1\nlast = 2\n")
    seen: list = []
    on_import(name, lambda module: seen.append((module, module.last)))
    assert seen == []
    assert name not in sys.modules
    module = importlib.import_module(name)
    assert seen == [(module, 2)]
    importlib.import_module(name)
    assert len(seen) == 1


def test_action_runs_at_once_on_an_imported_module(write_module):
    name = write_module("value = 3\n")
    module = importlib.import_module(name)
    seen: list = []
    on_import(name, seen.append)
    assert seen == [module]


def test_import_of_something_else_does_not_trigger_it(write_module):
    name, other = write_module(""), write_module("")
    seen: list = []
    on_import(name, seen.append)
    importlib.import_module(other)
    importlib.import_module(name.split(".")[0])
    assert seen == []


def test_two_actions_run_in_the_order_they_were_given(write_module):
    name = write_module("")
    seen: list = []
    on_import(name, lambda _: seen.append("first"))
    on_import(name, lambda _: seen.append("second"))
    importlib.import_module(name)
    assert seen == ["first", "second"]


def test_the_module_is_left_as_an_ordinary_one(write_module):
    name = write_module("value = 4\n")
    finders = list(sys.meta_path)
    on_import(name, lambda _: None)
    module = importlib.import_module(name)
    assert sys.meta_path == finders
    assert type(module.__loader__).__module__.startswith("_frozen_importlib")
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__
    assert Path(module.__file__ or "").name == "target.py"
    assert importlib.reload(module).value == 4


def test_from_import_sees_what_the_action_did(write_module):
    name = write_module("registry = {}\n")
    on_import(name, lambda module: module.registry.update(cppo=1))
    namespace: dict = {}
    exec(f"from {name} import registry", namespace)
    assert namespace["registry"] == {"cppo": 1}


def test_an_exception_in_the_action_fails_the_import(write_module):
    name = write_module("")

    def broken(_: object) -> None:
        raise RuntimeError("cannot register")

    on_import(name, broken)
    with pytest.raises(RuntimeError, match="cannot register"):
        importlib.import_module(name)
    assert name not in sys.modules


def test_looking_for_the_module_does_not_spend_the_action(write_module):
    """``find_spec`` is how others ask whether a module exists; the import that follows must still act."""
    name = write_module("")
    seen: list = []
    on_import(name, seen.append)
    assert importlib.util.find_spec(name) is not None
    assert seen == []
    assert seen == [importlib.import_module(name)]


def test_a_failed_import_does_not_spend_the_action(write_module):
    """A module that cannot be imported yet, retried when it can."""
    name = write_module("import watched_missing_dependency\n")
    seen: list = []
    on_import(name, seen.append)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    sys.modules["watched_missing_dependency"] = sys
    assert seen == [importlib.import_module(name)]


def test_a_failed_action_does_not_let_a_second_import_pass_without_it(write_module):
    """Whoever catches the first error and imports again must not get the module without its registrations."""
    name = write_module("")
    seen: list = []

    def broken_once(module: object) -> None:
        seen.append(module)
        if len(seen) == 1:
            raise RuntimeError("not yet")

    on_import(name, broken_once)
    with pytest.raises(RuntimeError):
        importlib.import_module(name)
    importlib.import_module(name)
    assert len(seen) == 2


def test_a_module_that_does_not_exist_stays_missing():
    name = "watched_never_written"
    finders = list(sys.meta_path)
    on_import(name, lambda _: None)
    try:
        with pytest.raises(ModuleNotFoundError, match=name):
            importlib.import_module(name)
    finally:
        sys.meta_path[:] = finders
