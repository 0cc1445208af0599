"""The ``trust_region`` presets: their names, and verl's config composed with one."""

from collections.abc import Sequence
from pathlib import Path

GROUP = "trust_region"
FOLDER = Path(__file__).parent / "conf" / GROUP


def names() -> list[str]:
    """Names that ``+trust_region=`` takes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "base")


def compose(preset: str, overrides: Sequence[str] = ()):
    """verl's ``ppo_trainer`` config with a preset and further overrides, as the command line would compose it.

    Raises:
        hydra.errors.HydraException: when Hydra refuses (unknown preset or key).
    """
    import hydra

    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", overrides=[f"+{GROUP}={preset}", *overrides])
