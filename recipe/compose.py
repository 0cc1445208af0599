"""``python -m recipe.compose OVERRIDE...``: verl's config as a run would see it, without importing verl."""

import sys

from recipe.environment import has_verl

if __name__ == "__main__":
    if not has_verl():
        sys.exit("config needs verl; plan and overrides do not. Run: pip install '.[gpu]'")
    from omegaconf import OmegaConf

    from cppo_verl.launch.overrides import OverrideError, compose

    try:
        config = compose(sys.argv[1:])
    except OverrideError as error:
        sys.exit(str(error))
    OmegaConf.resolve(config)
    print(OmegaConf.to_yaml(config), end="")
