"""What is shown of a run while it goes: a line a step, every alarm, and the config it was started with."""

import json
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cppo_verl import atomic

REWARD = "critic/score/mean"
ALARM = "TRUST REGION ALARM"  # stands before every alarm in a run's console
MASKED = "actor/trust_region/masked_share"


class Progress:
    """Looks at what a run writes. ``step`` is the last one that is logged, 0 before; ``total`` the steps of the whole
    run, None where the config does not say.

    Args:
        metrics: log of verl's file logger.  console: what the trainer prints.
        hydra_config: the composed config, as Hydra leaves it.  config: where it is kept, resolved.
    """

    def __init__(self, metrics: Path, console: Path, hydra_config: Path, config: Path):
        self.metrics, self.console, self.read = metrics, console, {metrics: 0, console: 0}
        self.hydra_config, self.config = hydra_config, config
        self.began = time.monotonic()
        self.first_step: tuple[int, float] | None = None
        self.step, self.total = 0, None
        self.saved = self.failed = False

    @property
    def ended(self) -> bool:
        """Whether the last step is logged."""
        return self.total is not None and self.step >= self.total

    def tick(self) -> None:
        """Called about once a second. What only watches a run never ends it: an error here is told once."""
        try:
            if not self.saved and self.hydra_config.with_name("overrides.yaml").exists():  # which Hydra writes last
                self.saved = True
                self._keep_config()
            for line in self._new_lines(self.console):
                _, mark, words = line.decode("utf-8", "replace").partition(ALARM)
                if mark:
                    print(mark + words.rstrip(), flush=True)
            for line in self._new_lines(self.metrics):
                record = json.loads(line)
                self._show(record["step"], record["data"])
        except Exception as error:  # noqa: BLE001
            if not self.failed:
                print(f"cppo-verl run: what is shown of the run is incomplete, it goes on ({error!r})", flush=True)
            self.failed = True

    def _new_lines(self, path: Path) -> Iterator[bytes]:
        """Whole lines that were added to a growing file since the last look."""
        if path.exists():
            with path.open("rb") as log:
                log.seek(self.read[path])
                for line in log:
                    if not line.endswith(b"\n"):
                        return
                    self.read[path] += len(line)
                    yield line

    def _keep_config(self) -> None:
        print(f"[{time.monotonic() - self.began:5.0f} s] config accepted; starting Ray, the model and vLLM", flush=True)
        said = self.config.with_name("start.txt")  # by integration.start_table
        if said.is_file():
            print(said.read_text(encoding="utf-8").rstrip(), flush=True)
        config = OmegaConf.load(self.hydra_config)
        OmegaConf.resolve(config)
        self.total = OmegaConf.select(config, "trainer.total_training_steps")
        atomic.write(self.config, OmegaConf.to_yaml(config))

    def _show(self, step: int, data: dict[str, Any]) -> None:
        self.step = max(self.step, step)
        numbers = {key: float("nan") if value is None else value for key, value in data.items()}  # null: not finite
        parts = [f"step {step}" + (f"/{self.total}" if self.total else "")]
        if REWARD in data:
            parts.append(f"reward {numbers[REWARD]:+.3f}")
        found = [(re.fullmatch(r"val-core/(.+)/acc/mean@\d+", key), value) for key, value in numbers.items()]
        parts += [f"{match[1]} {100 * value:.1f}%" for match, value in found if match]
        if MASKED in data:
            parts.append(f"masked {100 * numbers[MASKED]:.2f}%")
        now = time.monotonic()
        if "timing_s/step" in data:
            if self.first_step is None:
                self.first_step = (step, now)
            elif self.total and step > self.first_step[0]:
                pace = (now - self.first_step[1]) / (step - self.first_step[0])
                to_go = timedelta(seconds=round(pace * (self.total - step)))
                parts.append(f"{pace:.1f} s a step, {to_go} to go")
        print(f"[{now - self.began:5.0f} s] " + "  ".join(parts), flush=True)
