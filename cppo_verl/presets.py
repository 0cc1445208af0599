"""The ``trust_region`` presets: where they lie, their names, what they set, and verl's config composed with one."""

import functools
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

GROUP = "trust_region"
FOLDER = Path(__file__).parent / "conf" / GROUP
RULES_GROUP = "cppo_verl.rules"  # entry points of packages that bring rules


def names(folders: Iterable[Path] = ()) -> list[str]:
    """Names that ``+trust_region=`` takes: ours, those of installed packages, and those in config ``folders``."""
    return sorted({path.stem for folder in _all(folders) for path in folder.glob("*.yaml")} - {"base"})


def find(name: str, folders: Iterable[Path] = ()) -> Path | None:
    """The file of a preset, in the order in which Hydra looks; None when there is none."""
    return next((path for folder in _all(folders) if (path := folder / f"{name}.yaml").is_file()), None)


def is_from_outside(name: str, folders: Iterable[Path] = ()) -> bool:
    """Whether the preset's file is not one of ours."""
    path = find(name, folders)
    return path is not None and path.parent != FOLDER


def problems(name: str, folders: Iterable[Path]) -> list[str]:
    """What is wrong with a preset's file from outside: Hydra would not look at it, or take its keys for others."""
    folders = list(folders)
    path = find(name, folders)
    if path is None or not is_from_outside(name, folders):
        unseen = [file for folder in folders if (file := folder / GROUP / f"{name}.yaml").is_file()]
        said = f"{GROUP}={name} is a preset of this package"
        return [f"{said}, so {file} is not looked at; rename it." for file in unseen]
    header = path.read_text(encoding="utf-8").lstrip().partition("\n")[0]
    if header.replace(" ", "") != "#@package_global_":
        return [f"{path} has to begin with the line '# @package _global_', or its keys are not those of the run."]
    return []


def installed() -> list[Path]:
    """Config folders of packages that bring rules: ``conf`` in the package of each entry point. Imports none."""
    return list(_installed(tuple(sys.path)))


@functools.lru_cache  # Python opens a file of every distribution to know its entry points
def _installed(_: tuple[str, ...]) -> tuple[Path, ...]:
    tops = dict.fromkeys(entry.module.partition(".")[0] for entry in metadata.entry_points(group=RULES_GROUP))
    specs = [importlib.util.find_spec(top) for top in tops]
    places = [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]
    return tuple(place / "conf" for place in places if (place / "conf").is_dir())


def folders_of(search_path: Iterable[str]) -> list[Path]:
    """The folders among the entries of Hydra's search path, ``/a/b`` or ``file:///a/b``; packages are left out."""
    return [
        Path(entry.removeprefix("file://")) for entry in search_path if entry.partition("://")[0] in (entry, "file")
    ]


def settings(name: str, folders: Iterable[Path] = ()) -> dict[str, Any]:
    """What a preset and those it composes over set, as nested mappings; interpolations stay as they are.
    FileNotFoundError: it, or one it composes over, is not there."""
    from omegaconf import OmegaConf  # reads numbers as Hydra does, 1e-3 too

    folders = list(folders)
    path = find(name, folders)
    if path is None:
        raise FileNotFoundError(f"no preset {name}; there are {', '.join(names(folders))}")
    own: Any = OmegaConf.load(path)
    parents = [parent for parent in own.pop("defaults", []) if isinstance(parent, str) and parent != "_self_"]
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*(settings(parent, folders) for parent in parents), own))
    return merged


def section(name: str, folders: Iterable[Path], key: str) -> dict[str, Any]:
    """What ``settings`` has under a dotted ``key``; empty where nothing is set.
    FileNotFoundError: as for ``settings``."""
    found = settings(name, folders)
    for part in key.split("."):
        found = found.get(part) or {}
    return found


def compose(preset: str, overrides: Sequence[str] = ()):
    """verl's ``ppo_trainer`` config with a preset and further overrides, as the command line would compose it.
    hydra.errors.HydraException when Hydra refuses (unknown preset or key)."""
    import hydra

    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", overrides=[f"+{GROUP}={preset}", *overrides])


def _all(folders: Iterable[Path]) -> list[Path]:
    return [FOLDER, *(folder / GROUP for folder in (*installed(), *folders))]
