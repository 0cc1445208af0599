"""Hydra composes some thirty YAML files for each of the suite's command lines; with this, each choice of files once.

Values on the command line are applied each time, as ever. Where a test adds folders of its own to the search path, only
the parsed texts are remembered.
"""

import io
import pickle
from importlib.util import find_spec

from hydra._internal import config_loader_impl
from hydra._internal.defaults_list import DefaultsList, Overrides
from omegaconf import DictConfig, OmegaConf

Loader = config_loader_impl.ConfigLoaderImpl
_load, _list = OmegaConf.load, config_loader_impl.create_defaults_list
_compose = Loader._compose_config_from_defaults_list
VERL = find_spec("verl").submodule_search_locations[0]
FIXED = ("pkg://cppo_verl.", "pkg://hydra.", "pkg://verl.", "structured://", f"file://{VERL}/")  # what no test writes
_lists: dict[tuple, DefaultsList] = {}
_kept: dict[str | int, bytes] = {}  # by text, and by the id of a list in ``_lists``; much faster to read than to copy


def _once(key: str | int, make):
    if key not in _kept:
        _kept[key] = pickle.dumps(make(), pickle.HIGHEST_PROTOCOL)
    return pickle.loads(_kept[key])


def _load_once(file):
    if not hasattr(file, "read"):
        return _load(file)
    text = file.read()
    return _once(text, lambda: _load(io.StringIO(text)))


def _list_once(repo, config_name, overrides_list, **more) -> DefaultsList:
    sources = [source.full_path() for source in repo.get_sources()]
    if not all(source.startswith(FIXED) for source in sources):
        return _list(repo, config_name, overrides_list, **more)
    values = Overrides(repo, overrides_list).config_overrides
    groups = [override for override in overrides_list if override not in values]
    key = (*sources, config_name, *(override.input_line for override in groups), *more.items())
    if key not in _lists:
        _lists[key] = _list(repo, config_name, groups, **more)
    found = _lists[key]
    return DefaultsList(found.defaults, found.defaults_tree, values, found.overrides)


def _compose_once(self, defaults, repo) -> DictConfig:
    if all(known.defaults is not defaults for known in _lists.values()):
        return _compose(self, defaults, repo)
    return _once(id(defaults), lambda: _compose(self, defaults, repo))


OmegaConf.load = staticmethod(_load_once)
config_loader_impl.create_defaults_list = _list_once
Loader._compose_config_from_defaults_list = _compose_once
