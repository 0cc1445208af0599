"""The start check as a Hydra callback, so that a wrong config stops before Ray or a model is touched."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cppo_verl import atomic, presets
from cppo_verl.integration import checks, start_table
from cppo_verl.launch import supervise
from cppo_verl.trust_region import extensions


class StartCheck(Callback):
    """Presets name it under ``hydra.callbacks``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the composed config and this environment, and say what will train.

        Leaves with status 1 when the run cannot be, or cannot be judged: Hydra only warns about a callback's
        exceptions, and would start the run; SystemExit passes through.
        """
        try:
            sources = OmegaConf.select(config, "hydra.runtime.config_sources") or []
            find_rule(config, [Path(source.path) for source in sources if source.schema == "file"])
            overrides = _overrides(config)
            checks.require(config, here=True, overrides=overrides)
            found = start_table.lines(config, overrides)
        except checks.RunConfigError as error:
            raise SystemExit(f"cppo_verl: {error}") from None
        except Exception as error:
            raise SystemExit(
                f"cppo_verl: the start check itself failed ({type(error).__name__}: {error}), and nothing starts "
                "unchecked. Where that is not a fault of the config, please report it with the command line."
            ) from error
        program = OmegaConf.select(config, "hydra.job.name")
        if program not in (None, "main_ppo"):
            said = f"{program} is not verl.trainer.main_ppo; a trainer that it makes itself is not ours"
            found.append(f"  program       {said}")
        print("\n".join(found), flush=True)
        _keep("\n".join(found) + "\n", config)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """The same for each run of a sweep (``--multirun``), which Hydra announces in this way alone."""
        if OmegaConf.select(config, "hydra.mode") == RunMode.MULTIRUN:
            self.on_run_start(config)


def _overrides(config: DictConfig) -> list[str]:
    """Of the command line; with the preset, where a config of the user's own chooses it."""
    given = list(OmegaConf.select(config, "hydra.overrides.task") or ())
    chosen = OmegaConf.select(config, f"hydra.runtime.choices.{presets.GROUP}")
    if chosen and not any(f"{presets.GROUP}=" in each for each in given):
        given.append(f"+{presets.GROUP}={chosen}")
    return given + [each for each in OmegaConf.select(config, "hydra.overrides.hydra") or () if "searchpath" in each]


def _keep(said: str, config: DictConfig) -> None:
    """Beside the run's ``config.yaml``: in its run directory, or else where Hydra will write."""
    sweep = OmegaConf.select(config, "hydra.mode") == RunMode.MULTIRUN
    hydras = OmegaConf.select(config, "hydra.runtime.output_dir" if sweep else "hydra.run.dir")
    try:
        atomic.write(Path(os.environ.get(supervise.MARKER) or hydras, start_table.FILE), said)
    except OSError as error:
        print(f"{start_table.FILE} is not kept: {error}", flush=True)


def find_rule(config: DictConfig, folders: Iterable[Path]) -> None:
    """Make a ``rule_module`` that lies in one of ``folders`` an absolute path, which workers can read."""
    module = OmegaConf.select(config, extensions.KEY)
    if module:
        OmegaConf.update(config, extensions.KEY, extensions.resolve(module, [*folders, Path.cwd()]))
