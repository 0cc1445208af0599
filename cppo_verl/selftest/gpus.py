"""Which GPUs there are and how full they are, without a CUDA context in the process that asks.

``python -m cppo_verl.selftest.gpus`` prints what torch sees, for torch may open a context to say so.
"""

import json
import subprocess
import sys
from typing import Any

MIB = 2**20


def seen() -> dict[str, Any]:
    """``gpus``, a list of [name, bytes], and ``facts`` for the page; no GPU where torch is missing or fails."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, timeout=300)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"gpus": [], "facts": {"GPUs": "torch cannot be asked"}}


def used() -> list[float]:
    """GB in use on each GPU, by whatever process; nothing without nvidia-smi."""
    try:
        return [float(text) * MIB / 1e9 for text in _query("memory.used")]
    except ValueError:  # [N/A]
        return []


def _query(what: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def look() -> dict[str, Any]:
    """As ``seen``, in this process."""
    import torch

    if not torch.cuda.is_available():
        return {"gpus": [], "facts": {"GPUs": "none", "torch's CUDA": torch.version.cuda or "none"}}
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    facts = {
        "GPUs": "; ".join(f"{p.name}, {p.total_memory / 1e9:.0f} GB" for p in found),
        "torch's CUDA": str(torch.version.cuda),
        "driver": next(iter(_query("driver_version")), "unknown"),
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
    }
    return {"gpus": [[p.name, p.total_memory] for p in found], "facts": facts}


if __name__ == "__main__":
    print(json.dumps(look()))
