"""The start check as a Hydra callback, so that a wrong config stops before Ray or a model is touched."""

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cppo_verl.integration import checks


class StartCheck(Callback):
    """Presets name it under ``hydra.callbacks``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the composed config and this environment; leave with status 1 and the reasons when it cannot run."""
        try:
            checks.require(config, here=True)
        except checks.RunConfigError as error:
            # Hydra only warns about a callback's exceptions; SystemExit passes through.
            raise SystemExit(f"cppo_verl: {error}") from None
