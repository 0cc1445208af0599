"""Checkpoints that never pass for whole when they are not, and that carry the metrics of their step and our state.

verl logs a step only after its checkpoint (and the validation that follows): a run that dies between the two would
resume behind a step that no log has. ``cppo_verl.launch.checkpoints.recover_record`` puts it there.
"""

import copy
import json
import time
from pathlib import Path
from typing import Any

import orjson

from cppo_verl import atomic
from cppo_verl.launch import checkpoints


class SealedCheckpoints:
    """Over verl's trainer: a checkpoint gets ``unlogged.json`` first and ``data.pt`` last."""

    config: Any
    global_steps: int
    scale: float = 1.0  # of delta and delta_b, steered by ``budget_target``
    steps_per_epoch: int
    _rollout_moe_lb_metrics_accumulator: Any = None  # verl's metrics of a step count the load of experts in it

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]):
        began = time.perf_counter()
        batch = super().step(metrics, timing_raw)  # type: ignore[misc]
        self._unlogged = (batch, metrics, timing_raw, began)
        return batch

    def _save_checkpoint(self) -> None:
        folder = Path(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}")
        checkpoints.unseal(folder)
        state = {"mode": self.config.trainer.v1.trainer_mode, "threshold_scale": self.scale}
        atomic.write(folder / checkpoints.STATE, json.dumps(state) + "\n")
        (folder / checkpoints.RECORD).write_bytes(self._record())
        super()._save_checkpoint()  # type: ignore[misc]

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()  # type: ignore[misc]
        trainer = self.config.trainer
        folder = Path(trainer.default_local_dir, f"global_step_{self.global_steps}")
        if trainer.resume_mode == "resume_path":
            folder = Path(trainer.resume_from_path)
        if self.global_steps and (folder / checkpoints.STATE).is_file():
            self.scale = float(json.loads((folder / checkpoints.STATE).read_text())["threshold_scale"])

    def _record(self) -> bytes:
        """The line of verl's file logger for this step, as far as it is known by now; verl makes its own later."""
        batch, metrics, timing, began = self._unlogged
        data, timing = dict(metrics), {**timing, "step": time.perf_counter() - began}
        epoch = (self.global_steps - 1) // self.steps_per_epoch
        counted = self._rollout_moe_lb_metrics_accumulator
        self._rollout_moe_lb_metrics_accumulator = copy.deepcopy(counted)
        self._compute_metrics(batch, data, timing, global_steps=self.global_steps, epoch=epoch)  # type: ignore[attr-defined]
        self._rollout_moe_lb_metrics_accumulator = counted
        return orjson.dumps({"step": self.global_steps, "data": data}, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
