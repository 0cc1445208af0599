"""All checks in order, each a finding; none of them may end the others."""

import traceback
from collections.abc import Iterator

from cppo_verl.doctor import inputs, machine, software
from cppo_verl.doctor.verdicts import FAIL, OK, Asked, Finding, Verdict

CHECKS = {
    "versions": software.versions,
    "plug-in": software.plugin,
    "attention": software.attention,
    "device": machine.device,
    "GPUs": machine.gpus,
    "shared memory": machine.shared_memory,
    "disk": machine.disk,
    "vLLM": software.vllm,
}


def examine(asked: Asked) -> Iterator[Finding]:
    """One finding a check, as soon as it is there; model and recipe only where they were named."""
    named = {"model": inputs.model} if asked.model else {}
    named |= {"recipe": inputs.recipe} if asked.recipe else {}
    for title, check in (CHECKS | named).items():
        try:
            yield Finding(title, OK, check(asked))
        except Verdict as ended:
            yield Finding(title, ended.verdict, str(ended))
        except Exception as error:  # noqa: BLE001 - a doctor reports every failure
            last = traceback.format_exc().rstrip().splitlines()[-8:]
            yield Finding(title, FAIL, "\n".join([f"{type(error).__name__} while checking {title}", *last]))
