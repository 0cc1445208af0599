"""Run a function right after a module is first imported.

verl loads plug-ins at ``import verl``, long before most of its modules are needed. Registering there and then would
import them for everybody; this defers each registration to the import that makes it useful.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

Action = Callable[[ModuleType], None]


def on_import(name: str, action: Action) -> None:
    """Call ``action(module)`` once module ``name`` has been imported; at once if it already has.

    Actions on one module run in the order in which they were given. An exception in one fails that import, loudly, and
    the next attempt runs them all again.
    """
    if name in sys.modules:
        action(sys.modules[name])
        return
    FINDER.actions.setdefault(name, []).append(action)
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are waited for, by asking the other finders, and has their loader act afterwards."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}
        self.asking: set[str] = set()  # modules that the others are being asked for

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname not in self.actions or fullname in self.asking:
            return None
        self.asking.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.asking.discard(fullname)
        if spec is None or spec.loader is None:
            return None
        loader: importlib.abc.Loader = spec.loader
        execute = loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            del loader.exec_module  # the module keeps an ordinary loader
            for action in self.actions.get(fullname, ()):
                action(module)
            self.actions.pop(fullname, None)

        loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


FINDER = _Finder()
