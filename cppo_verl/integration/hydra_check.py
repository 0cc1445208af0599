"""The start check as a Hydra callback, so that a wrong config stops before Ray or a model is touched."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from cppo_verl.integration import checks
from cppo_verl.trust_region import extensions


class StartCheck(Callback):
    """Presets name it under ``hydra.callbacks``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the composed config and this environment; leave with status 1 and the reasons when it cannot run."""
        _find_rule(config)
        try:
            checks.require(config, here=True)
        except checks.RunConfigError as error:
            # Hydra only warns about a callback's exceptions; SystemExit passes through.
            raise SystemExit(f"cppo_verl: {error}") from None


def _find_rule(config: DictConfig) -> None:
    """Make a ``rule_module`` that lies beside its preset an absolute path, which workers can read."""
    key = extensions.KEY
    module = OmegaConf.select(config, key)
    if module:
        sources = OmegaConf.select(config, "hydra.runtime.config_sources") or []
        folders = [Path(source.path) for source in sources if source.schema == "file"]
        OmegaConf.update(config, key, extensions.resolve(module, [*folders, Path.cwd()]))
