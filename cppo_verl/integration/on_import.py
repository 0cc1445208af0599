"""Run a function right after a module is first imported.

verl loads plug-ins at ``import verl``, long before most of its modules are needed. Registering there and then would
import them for everybody; this defers each registration to the import that makes it useful.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

Action = Callable[[ModuleType], None]


def on_import(name: str, action: Action) -> None:
    """Call ``action(module)`` once module ``name`` has been imported; at once if it already has.

    Actions on one module run in the order in which they were given. An exception in one fails that import, loudly, and
    the next attempt runs them all again.
    """
    module = sys.modules.get(name)
    if module is not None:
        action(module)
        return
    FINDER.actions.setdefault(name, []).append(action)
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are waited for, by asking the other finders."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}
        self.asking: set[str] = set()  # modules that the others are being asked for

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        if fullname not in self.actions or fullname in self.asking:
            return None
        self.asking.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.asking.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, fullname)
        return spec


class _Loader(importlib.abc.Loader):
    """The module's own loader, with the actions behind it; they are forgotten once all have succeeded."""

    def __init__(self, loader: importlib.abc.Loader, name: str):
        self.loader = loader
        self.name = name

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        for action in FINDER.actions.get(self.name, ()):
            action(module)
        FINDER.actions.pop(self.name, None)

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)


FINDER = _Finder()
