"""``python -m recipe.compose OVERRIDE...``: verl's config as a run would see it, without importing verl."""

import sys
from importlib.util import find_spec
from pathlib import Path


def compose(overrides: list[str]):
    """verl's ``ppo_trainer`` with the overrides, composed by Hydra.

    Raises:
        hydra.errors.HydraException: for an unknown key or group.
        ModuleNotFoundError: where verl is not installed.
    """
    import hydra

    spec = find_spec("verl")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("config needs verl; plan and overrides do not. Run: pip install '.[gpu]'")
    folder = Path(spec.origin).parent / "trainer" / "config"
    with hydra.initialize_config_dir(str(folder), version_base=None):
        return hydra.compose("ppo_trainer", overrides=overrides)


def main(overrides: list[str]) -> int:
    """Print the resolved YAML."""
    from omegaconf import OmegaConf

    config = compose(overrides)
    OmegaConf.resolve(config)
    print(OmegaConf.to_yaml(config), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
