"""verl's own writing of a checkpoint, killed at random moments, many times a minute.

The trainer's ``_save_checkpoint`` and the FSDP checkpoint manager are real, in a forked process without Ray and vLLM.
Every number of a checkpoint is the step it was written at, so that a mixture of two is seen. The whole stack is in
benchmarks/faults.py. CPPO_VERL_FUZZ=N makes N times as many trials.
"""

import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.distributed.fsdp import fully_shard
from transformers import Qwen3Config, Qwen3ForCausalLM
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

from cppo_verl import presets
from cppo_verl.integration.trainer import SyncTrainer
from cppo_verl.launch import checkpoints

TRIALS = 8 * int(os.environ.get("CPPO_VERL_FUZZ", "1"))
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32}
CONFIG = presets.compose("cppo", ["trainer.max_actor_ckpt_to_keep=2"])


def make_trainer(root: Path):
    """A trainer that can do nothing but save: a tiny FSDP2 model on this process, and AdamW."""
    store = torch.distributed.FileStore(str(root.parent / f"store-{os.getpid()}"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=256, num_key_value_heads=2, **SIZES))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    manager = FSDPCheckpointManager(model, optimizer, processing_class=None)
    trainer = SyncTrainer.__new__(SyncTrainer)
    trainer.config = CONFIG.copy()
    trainer.config.trainer.default_local_dir = str(root)
    trainer.config.trainer.v1.trainer_mode = "sync"  # as the constructor does
    trainer.use_critic, trainer.trainer_mode = False, "sync"
    trainer.checkpoint_callback = SimpleNamespace(on_save=lambda **_: None)
    trainer.actor_rollout_wg = SimpleNamespace(save_checkpoint=manager.save_checkpoint)
    trainer.train_dataloader = SimpleNamespace(state_dict=lambda: {"position": trainer.global_steps})
    trainer._record = lambda: b'{"step":%d,"data":{}}\n' % trainer.global_steps
    return trainer, model, optimizer


def save_on_and_on(root: Path, first: int, done: int) -> None:
    """Save step after step, each number of it the step's; tell each finished step on the pipe ``done``."""
    trainer, model, optimizer = make_trainer(root)
    for step in range(first, first + 10_000):
        trainer.global_steps = step
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
                optimizer.state[parameter] = {
                    name: torch.full_like(parameter, step) for name in ("exp_avg", "exp_avg_sq")
                }
        trainer._save_checkpoint()
        os.write(done, b"%d\n" % step)


def run_until(root: Path, first: int, seconds: float) -> int:
    """The last step saved to the end before the process was killed; ``first - 1`` if none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            save_on_and_on(root, first, writing)
        finally:
            os._exit(1)
    os.close(writing)
    told = os.fdopen(reading)
    finished = [first - 1, int(told.readline())]
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    finished += map(int, told)
    os.waitpid(child, 0)
    return max(finished)


def numbers_in(folder: Path) -> set[float]:
    """All numbers of a checkpoint's weights, optimizer state and data position."""
    found = {float(torch.load(folder / "data.pt", weights_only=False)["position"])}
    for kind in ("model", "optim"):
        state = torch.load(folder / f"actor/{kind}_world_size_1_rank_0.pt", weights_only=False)
        tensors = state.values() if kind == "model" else [t for s in state["state"].values() for t in s.values()]
        for tensor in tensors:
            found |= set(getattr(tensor, "_local_tensor", tensor).unique().tolist())
    return found


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    chance = random.Random(0)
    root = tmp_path / "checkpoints"
    step, torn = 0, 0
    for _ in range(TRIALS):
        saved = run_until(root, step + 1, chance.uniform(0, 0.1))
        folders = checkpoints.steps(root)
        torn += any(checkpoints.fault(folder) for number, folder in folders.items() if number > saved)
        chosen, _ = checkpoints.settle(root)
        # what was finished is never lost; one more step may be whole that the process could not tell of
        assert chosen in (saved, saved + 1)
        assert numbers_in(folders[chosen]) == {float(chosen)}
        assert (root / checkpoints.POINTER).read_text() == str(chosen)
        step = chosen
    assert torn  # the moments were not all harmless
