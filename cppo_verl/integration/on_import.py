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


def on_import(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call ``action(module)`` once module ``name`` has been imported; at once if it already has.

    An exception in ``action`` fails that import, loudly.
    """
    module = sys.modules.get(name)
    if module is not None:
        action(module)
    else:
        sys.meta_path.insert(0, _Watcher(name, action))


class _Watcher(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, action: Callable[[ModuleType], None]):
        self.name = name
        self.action = action
        self.asking = False  # other finders are being asked for the real spec

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        if fullname != self.name or self.asking:
            return None
        self.asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    """The module's own loader, with the watcher's action behind it; the watcher goes once both have succeeded."""

    def __init__(self, loader: importlib.abc.Loader, watcher: _Watcher):
        self.loader = loader
        self.watcher = watcher

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.watcher.action(module)
        if self.watcher in sys.meta_path:
            sys.meta_path.remove(self.watcher)

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)
