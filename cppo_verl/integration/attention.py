"""Which attention the actor runs with, and whether this environment has it.

verl 0.9 asks transformers for ``flash_attention_2`` unless ``override_config.attn_implementation`` says otherwise. Its
Ulysses sequence parallelism patches the function that transformers calls for every flash attention, and no other
(verl/models/transformers/monkey_patch.py); ``launch.sizes`` refuses the rest.
"""

import importlib
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from cppo_verl.launch import sizes

BUILT_IN = ("sdpa", "eager", "flex_attention")
# The module that transformers 5.9 takes each from (modeling_flash_attention_utils.py).
FLASH = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
}
NEEDED = "flash_attn_varlen_func"  # for packed sequences


def in_force(config: DictConfig) -> str | None:
    """The actor's attention under verl's FSDP engines; None for engines that choose it in another way."""
    if OmegaConf.select(config, sizes.STRATEGY) not in sizes.FSDP:
        return None
    return str(OmegaConf.select(config, sizes.ATTENTION) or sizes.VERLS_ATTENTION)


def missing(name: str) -> str | None:
    """Why attention ``name`` cannot be used in this environment; None when it can. Imports what a run would import."""
    if name in BUILT_IN:
        return None
    if name in FLASH:
        reason = _import_error(FLASH[name])
        return None if reason is None or _hub_kernels() else reason
    if "/" in name:
        return None if _hub_kernels() else "a kernel of the hub needs the package kernels, as new as transformers asks"
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return None if name in ALL_ATTENTION_FUNCTIONS.valid_keys() else "transformers knows no attention of that name"


def here_problems(config: DictConfig) -> Iterator[str]:
    """One sentence when this environment lacks the attention that ``config`` asks for."""
    name = in_force(config)
    reason = missing(name) if name is not None else None
    if reason:
        yield (
            f"{sizes.ATTENTION}={name} cannot be used in this environment ({reason}): install it (docs/gpu.md has the "
            f"ways), or set ++{sizes.ATTENTION}=sdpa, which is right without sequence parallelism, though slower."
        )


def _import_error(module: str) -> str | None:
    try:
        getattr(importlib.import_module(module), NEEDED)
    except Exception as error:  # noqa: BLE001 - an extension built for another torch fails in many ways
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _hub_kernels() -> bool:
    """Whether transformers would take the kernel from the hub instead."""
    from transformers.utils.import_utils import is_kernels_available

    return is_kernels_available()
