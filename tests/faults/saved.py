"""Checkpoints with the layout of verl's FSDP engine, made of tiny tensors."""

import json
from pathlib import Path

import torch


def save(root: Path, step: int, ranks: int = 1, pointer: bool = True) -> Path:
    """A whole checkpoint in the order in which verl writes it."""
    folder = root / f"global_step_{step}"
    actor = folder / "actor"
    (actor / "huggingface").mkdir(parents=True, exist_ok=True)
    for rank in range(ranks):
        for kind in ("model", "optim", "extra_state"):
            torch.save({"weight": torch.full((64,), step)}, actor / f"{kind}_world_size_{ranks}_rank_{rank}.pt")
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": ranks}))
    torch.save({"position": step}, folder / "data.pt")
    if pointer:
        (root / "latest_checkpointed_iteration.txt").write_text(str(step))
    return folder


def cut(path: Path) -> None:
    """Leave the first half of a file, as a full disk does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
