"""The machine: verl's device, GPUs with their driver and free memory, shared memory, disk."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cppo_verl.doctor.verdicts import GB, Asked, Note, Skip, Trouble
from cppo_verl.integration import cpu

NEEDED_CAPABILITY = (8, 0)  # bfloat16 and flash attention
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED, GOOD_SHARED = 1 * GB, 8 * GB  # NCCL's guide asks for 1; verl's own container for 10
LEAST_DISK = 20 * GB
VERLS_SHARE = 0.5  # of a GPU's memory that vLLM takes where nothing is set


class Gpu(NamedTuple):
    """One visible GPU; memory in bytes."""

    name: str
    capability: tuple[int, int]
    free: int
    total: int


def device(asked: Asked) -> str:
    """verl's platform finds a device."""
    from verl.plugin.platform import get_platform

    chosen = get_platform()
    if not chosen.is_available():
        raise Trouble(
            f"verl chose the platform {type(chosen).__name__}, but this machine has no such device. With a GPU: "
            "nvidia-smi must list it (a container takes --gpus all). Without one set VERL_PLATFORM=cpu and add "
            "+platform=cpu to the command line."
        )
    found, backend = f"{chosen.device_name} ({type(chosen).__name__})", chosen.communication_backend_name()
    return f"verl uses {found}, {chosen.device_count()} visible, collectives over {backend}"


def gpus(asked: Asked) -> str:
    """The driver is new enough for torch, and the GPUs that verl would use are able to, and free."""
    if cpu.enabled():
        raise Skip("not used on the CPU platform")
    import torch
    from torch import cuda

    if torch.version.cuda is None:
        raise Skip(f"torch {torch.__version__} is a build without CUDA")
    try:
        cuda.init()
    except RuntimeError as error:  # no driver, or one that is too old: torch says which, and what to do
        raise Trouble(" ".join(str(error).split())) from None
    found = [
        Gpu(cuda.get_device_name(index), cuda.get_device_capability(index), *cuda.mem_get_info(index))
        for index in range(cuda.device_count())
    ]
    if asked.config is None:
        return gpu_line(found, VERLS_SHARE, None)
    share = asked.config.actor_rollout_ref.rollout.gpu_memory_utilization
    return gpu_line(found, share, asked.config.trainer.n_gpus_per_node)


def gpu_line(found: Sequence[Gpu], share: float, wanted: int | None) -> str:
    """What is said of the visible GPUs, of which a run wants ``wanted`` and vLLM ``share`` of each."""
    if wanted is not None and len(found) < wanted:
        remedy = "lower it, or see CUDA_VISIBLE_DEVICES"
        raise Trouble(f"{len(found)} GPUs visible, trainer.n_gpus_per_node={wanted}: {remedy}")
    for index, gpu in enumerate(found):
        if gpu.capability < NEEDED_CAPABILITY:
            raise Trouble(
                f"GPU {index} ({gpu.name}) has compute capability {'.'.join(map(str, gpu.capability))}; bfloat16 "
                "and flash attention need 8.0. Hide it with CUDA_VISIBLE_DEVICES"
            )
        if gpu.free < share * gpu.total:
            raise Trouble(
                f"GPU {index} ({gpu.name}) has {gpu.free / GB:.1f} of {gpu.total / GB:.1f} GB free, vLLM wants "
                f"{share:.0%} of it: end what runs there (nvidia-smi names it), or lower "
                "actor_rollout_ref.rollout.gpu_memory_utilization"
            )
    names, least = ", ".join(sorted({gpu.name for gpu in found})), min(gpu.free for gpu in found)
    return f"{len(found)} x {names}, at least {least / GB:.1f} GB free, of which vLLM wants {share:.0%}"


def shared_memory(asked: Asked) -> str:
    """NCCL, Ray's object store and vLLM's workers exchange data through it."""
    if not SHARED_MEMORY.is_dir():
        return "not used here"
    free = shutil.disk_usage(SHARED_MEMORY).free
    said = f"{free / GB:.2f} GB free in {SHARED_MEMORY}"
    remedy = "start the container with --shm-size=16g or --ipc=host, or mount -o remount,size=16g /dev/shm"
    if free < LEAST_SHARED:
        raise Trouble(f"{said}: NCCL, Ray and vLLM need more; {remedy}")
    if free < GOOD_SHARED:
        raise Note(f"{said}: Ray's object store goes to disk beyond that; {remedy}")
    return said


def disk(asked: Asked) -> str:
    """The run directory's disk holds the checkpoints that a run keeps, of which some may lie there."""
    folder = next(path for path in (asked.run_dir, *asked.run_dir.parents) if path.exists())
    free, each = shutil.disk_usage(folder).free, asked.checkpoint_bytes
    said = f"{free / GB:.0f} GB free at {folder}"
    if each is None and free < LEAST_DISK:
        raise Note(f"{said}; --recipe or --model says what the checkpoints take")
    if each is None:
        return said
    there = sum(file.stat().st_size for file in (asked.run_dir / "checkpoints").rglob("*") if file.is_file())
    kept = 2 if asked.config is None else asked.config.trainer.max_actor_ckpt_to_keep or 2
    needed, plan = kept * each - there, f"{kept} checkpoints of {each / GB:.0f} GB"
    if free < needed:
        raise Trouble(f"{said}, {plan} need {needed / GB:.0f} more: make room, or put the run on another disk (RUN=)")
    return f"{said}, enough for {plan}"
