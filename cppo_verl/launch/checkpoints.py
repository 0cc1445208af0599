"""Which checkpoint of a run is whole, and verl's pointer to it.

verl (FSDP) writes a checkpoint in place: shards, then ``data.pt``, then the step into a pointer file, truncated first.
A run that dies meanwhile leaves parts that are missing or cut off, an empty pointer, or a pointer to a checkpoint whose
shards were deleted to make room; verl's ``resume_mode=auto`` follows the pointer whatever it finds there.
"""

import contextlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cppo_verl import atomic, jsonlines
from cppo_verl.errors import UserError

POINTER = "latest_checkpointed_iteration.txt"
SEAL = "data.pt"  # written last: with it, all ranks have written their shards
STATE = "trust_region.json"  # of our trainer: its mode, and the scale of the thresholds
QUEUE = "transfer_queue"  # of asynchronous modes: responses that wait, prompts under way; renamed into place by verl
RECORD = "unlogged.json"  # metrics of the checkpoint's step, which verl logs only after it
KINDS = ("model", "optim", "extra_state")  # of shards, as verl saves them where nobody chose others
FOLDER = re.compile(r"global_step_([0-9]+)")
SHARD = re.compile(r"\w+_world_size_[0-9]+_rank_[0-9]+\.pt")


class CheckpointError(UserError):
    """The run had checkpoints and cannot be resumed from them; the message says why."""


def fault(folder: Path, kinds: Collection[str] = KINDS) -> str | None:
    """Why a ``global_step_N`` folder cannot be resumed from; None for a whole one.

    ``kinds`` are those of shards that the run reads. Archives are opened, not read through: a write that was cut off is
    found, a flipped bit is not.
    """
    if not (folder / "actor").is_dir():
        return "has no folder actor"
    for part in ("actor", "critic"):
        problem = _part_fault(folder / part, kinds) if (folder / part).is_dir() else None
        if problem:
            return f"{part}/{problem}"
    return _archive_fault(folder / SEAL) or _queue_fault(folder)


def _queue_fault(folder: Path) -> str | None:
    """An asynchronous run writes its queue after the seal."""
    mode = (_read(folder / STATE) or {}).get("mode", "sync")  # without: verl's own, or from before there were modes
    return f"{QUEUE} is missing" if mode != "sync" and not (folder / QUEUE).is_dir() else None


def _part_fault(part: Path, kinds: Collection[str]) -> str | None:
    ranks = ranks_of(part)
    if ranks is None:
        return "fsdp_config.json is missing or cut off"
    for kind in kinds:
        for rank in range(ranks):
            if problem := _archive_fault(part / f"{kind}_world_size_{ranks}_rank_{rank}.pt"):
                return problem
    whole = _read(part / "huggingface" / "config.json") is not None
    return None if whole else "huggingface/config.json is missing or cut off"


def _archive_fault(path: Path) -> str | None:
    """torch.save writes a zip archive, whose directory of contents comes last."""
    try:
        with zipfile.ZipFile(path):
            return None
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (zipfile.BadZipFile, OSError):
        return f"{path.name} is cut off"


def ranks_of(part: Path) -> int | None:
    """How many ranks wrote a folder ``actor`` or ``critic``; None where that cannot be read."""
    ranks = (_read(part / "fsdp_config.json") or {}).get("world_size")
    return ranks if isinstance(ranks, int) else None


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no whole one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_foreign(folder: Path) -> bool:
    """Whether the folder holds something that is no FSDP checkpoint, whole or not (Megatron's, say).

    Names that nobody knows count only where none of FSDP's is: a file browser or NFS leaves some anywhere.
    """
    actor = folder / "actor"
    names = [name for name in os.listdir(actor) if not name.startswith(".")] if actor.is_dir() else []
    if any(name == "fsdp_config.json" or SHARD.fullmatch(name) for name in names):
        return False
    return bool(set(names) - {"huggingface", "lora_train_meta.json"})


def steps(root: Path) -> dict[int, Path]:
    """The ``global_step_N`` folders of a run by N, ascending."""
    found = [(FOLDER.fullmatch(path.name), path) for path in root.iterdir()] if root.is_dir() else []
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def pointed_at(root: Path) -> int | None:
    """The step that verl's pointer names; None without a readable pointer."""
    try:
        return int((root / POINTER).read_text())
    except (OSError, ValueError):
        return None


def settle(root: Path, ranks: int | None = None, kinds: Collection[str] = KINDS) -> tuple[int | None, list[str]]:
    """Make verl's pointer name a whole checkpoint, before verl follows it.

    The pointer stands if its checkpoint is whole and none was finished after it was written, so that pointing at an
    older checkpoint by hand works. Else it is moved to the newest whole one. ``ranks`` are the run's, None where they
    are not known; ``kinds`` those of shards that it reads.

    Returns:
        The step that verl will resume from, None for a start from step 0 or where the checkpoints are not FSDP's; and
        a sentence for each thing that was found amiss.

    Raises:
        CheckpointError: there is a pointer, and no whole checkpoint; or the chosen one is of another number of ranks.
    """
    folders, pointed, has_pointer = steps(root), pointed_at(root), (root / POINTER).exists()
    if any(map(is_foreign, folders.values())):
        return None, []
    faults = {step: why for step, folder in folders.items() if (why := fault(folder, kinds))}
    whole = [step for step in folders if step not in faults]
    if not whole and has_pointer:
        listed = "".join(f"\n  - {folders[step]} is not whole: {why}" for step, why in faults.items())
        raise CheckpointError(
            f"{root / POINTER} names step {pointed}, and there is no whole checkpoint:{listed}\n"
            "Put one back, or start over with --fresh."
        )
    chosen = _choose(root, folders, whole, pointed) if whole else None
    if chosen is not None:
        _require_ranks(folders[chosen], ranks)
    later = [step for step in faults if step > (chosen or 0)]
    notes = [f"{folders[step].name} is not whole ({faults[step]}), left aside" for step in later]
    for step in faults:
        unseal(folders[step])
    if chosen is not None and chosen != pointed:
        named = f"named step {pointed}" if has_pointer else "was missing"
        notes.append(f"{POINTER} {named}; resuming from step {chosen}, the newest whole checkpoint")
        atomic.write(root / POINTER, str(chosen))
    return chosen, notes


def _choose(root: Path, folders: dict[int, Path], whole: list[int], pointed: int | None) -> int:
    if pointed not in whole:
        return max(whole)
    written = (root / POINTER).stat().st_mtime_ns
    return max(s for s in whole if s == pointed or (folders[s] / SEAL).stat().st_mtime_ns > written and s > pointed)


def require(named: str, ranks: int | None = None, kinds: Collection[str] = KINDS) -> None:
    """For a checkpoint that the user names.

    Raises:
        CheckpointError: it is not whole, other ranks wrote it, or verl would not find the step in its name.
    """
    if not FOLDER.fullmatch(named.rpartition("/")[2]):
        raise CheckpointError(f"trainer.resume_from_path={named} has to end in global_step_N, which verl takes N from.")
    folder = Path(named)
    if is_foreign(folder):
        return
    if problem := fault(folder, kinds):
        raise CheckpointError(f"trainer.resume_from_path={named} is not whole: {problem}. Name another.")
    _require_ranks(folder, ranks)


def _require_ranks(folder: Path, ranks: int | None) -> None:
    """verl reads a shard for each rank of the run."""
    wrote = ranks_of(folder / "actor")
    if ranks is not None and wrote != ranks:
        raise CheckpointError(
            f"{folder} was written by {wrote} ranks, and this run has {ranks} (trainer.nnodes x trainer.n_gpus_per_node"
            f"): verl resumes with as many only. Set them to {wrote} in all, or start over with --fresh."
        )


def unseal(folder: Path) -> None:
    """Take the seal off a folder that will be written (again), so that new and old parts never pass for a whole."""
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder / QUEUE, ignore_errors=True)


def recover_record(root: Path, step: int, logs: Path, started: str) -> Path | None:
    """Log the training metrics of the resumed step where the run died between checkpoint and log; the file, if any.

    The file sorts before the log of the start called ``started``.
    """
    record = root / f"global_step_{step}" / RECORD
    if not record.is_file() or any(_logs_training_of(step, path) for path in logs.glob("metrics-*.jsonl")):
        return None
    path = logs / f"metrics-{started}-recovered.jsonl"
    atomic.write(path, record.read_bytes())
    return path


def _logs_training_of(step: int, path: Path) -> bool:
    """Whether a log holds the training record of ``step`` (validation before training repeats the step alone)."""
    for line in jsonlines.lines(path):
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # torn, or of somebody else
            if line.value["step"] == step and any(not name.startswith("val-") for name in line.value["data"]):
                return True
    return False
