"""``python -m recipe.compose OVERRIDE...``: verl's config as a run would see it, without importing verl."""

import sys
from importlib.util import find_spec


def compose(overrides: list[str]):
    """verl's ``ppo_trainer`` with the overrides, composed by Hydra.

    Raises:
        cppo_verl.launch.overrides.OverrideError: for an unknown key or group.
        ModuleNotFoundError: where verl is not installed.
    """
    if find_spec("verl") is None:
        raise ModuleNotFoundError("config needs verl; plan and overrides do not. Run: pip install '.[gpu]'")
    from cppo_verl.launch import overrides as hydra_overrides

    return hydra_overrides.compose(overrides)


if __name__ == "__main__":
    config = compose(sys.argv[1:])
    from omegaconf import OmegaConf

    OmegaConf.resolve(config)
    print(OmegaConf.to_yaml(config), end="")
