"""A recipe's own command line, as its script in run_scripts makes it on this machine."""

import os
import subprocess
import sys

from cppo_verl.selftest.machine import ROOT, Machine
from cppo_verl.selftest.setting import SelftestError

SCRIPTS = ROOT / "run_scripts"
# On the CPU the recipe keeps its method and flags, its lengths and batches are a toy's; a variable that is set stays.
MINIATURE = {"PROMPTS": "4", "N": "4", "MINIBATCH": "2", "PROMPT_TOKENS": "48", "RESPONSE_TOKENS": "64"}
MINIATURE |= {"NGPUS_PER_NODE": "1", "SP": "1", "TP": "1", "TOKENS_PER_GPU": "2048", "GPU_SHARE": "0.05"}


def overrides(name: str, model: str, here: Machine) -> tuple[str, ...]:
    """What run_scripts/NAME.sh gives verl in this environment, before the stage's own changes.

    Raises:
        SelftestError: no such script, or the script refuses.
    """
    script = SCRIPTS / f"{name}.sh"
    if not script.is_file():
        there = ", ".join(sorted(path.stem for path in SCRIPTS.glob("qwen3_*.sh"))) or "no scripts beside this copy"
        raise SelftestError(
            f"--recipe {name}: there is no {script.name} in run_scripts ({there}); start from the repository"
        )
    defaults = MINIATURE if here.device == "cpu" else {"NGPUS_PER_NODE": str(max(here.ranks, 1))}
    environment = {**defaults, **os.environ, "PYTHON": sys.executable, **({"MODEL_PATH": model} if model else {})}
    done = subprocess.run(["bash", str(script), "overrides"], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SelftestError(f"--recipe {name}: {(done.stderr or done.stdout).strip()}")
    return tuple(done.stdout.splitlines())
