"""A run's Hydra overrides, read by Hydra's own parser, and the config that they make of verl's."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cppo_verl.errors import UserError


class OverrideError(UserError):
    """Hydra refuses an override, or the config that they make; the message is Hydra's."""

    status = 2


def parse(overrides: Iterable[str]) -> dict[str, Any]:
    """The last value of each key by Hydra's grammar, without a look at the config; interpolations stay text, strings
    lose their quotes.

    Raises:
        OverrideError: one is no override, or a sweep over several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    values: dict[str, Any] = {}
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise OverrideError(f"{text}: {str(error).rstrip('.')}.") from None
        if override.is_sweep_override():
            raise OverrideError(f"{text}: several values are a sweep; a list is [a,b], a text with a comma is quoted.")
        if override.type == OverrideType.DEL:
            values.pop(override.key_or_group, None)
        else:
            values[override.key_or_group] = override.value()
    return values


def compose(overrides: Sequence[str], config_name: str | None = None, config_path: str | None = None):
    """The config that ``verl.trainer.main_ppo`` would get, without importing verl; a third of a second.

    Args:
        config_name: as Hydra's ``--config-name``; verl's where it is None.
        config_path: as Hydra's ``--config-path``: a folder, absolute or beside verl's ``main_ppo``.

    Raises:
        OverrideError: Hydra refuses, or there is no such config.
    """
    spec = find_spec("verl")
    if spec is None or spec.origin is None:
        raise OverrideError("verl is not installed, so there is no config to compose: pip install verl==0.9.1")
    import hydra
    from hydra.errors import HydraException

    folder = Path(spec.origin).parent / "trainer" / (config_path or "config")
    try:
        with hydra.initialize_config_dir(str(folder), version_base=None):
            return hydra.compose(config_name or "ppo_trainer", overrides=list(overrides))
    except HydraException as error:
        raise OverrideError(str(error)) from None
