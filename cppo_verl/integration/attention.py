"""Which attention a run's models take, and whether this environment has it.

verl 0.9 asks transformers for ``flash_attention_2`` unless ``override_config.attn_implementation`` says otherwise; a
critic gets flash attention whatever that says (verl/utils/model.py). Its Ulysses sequence parallelism patches the
function that transformers calls for every flash attention, and no other; ``launch.sizes`` refuses the rest.
"""

import importlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf

from cppo_verl.integration import cpu
from cppo_verl.launch import sizes

FLASH = {  # the module that transformers 5.9 takes each from (modeling_flash_attention_utils.py)
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
    """Why flash attention ``name``, or that of a kernel in the hub, cannot be used here; None when it can, and for the
    others, which come with torch. Imports what a run would import."""
    if name in FLASH:
        reason = _error_of(importlib.import_module, FLASH[name])
        if reason is None or find_spec(FLASH[name].partition(".")[0]):
            return reason  # transformers goes by the package's name, and looks no further
        in_hub = _hub_error(name)
        return in_hub and f"{reason}; the hub's kernel: {in_hub}"
    return _hub_error(name) if "/" in name else None


def here_problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each attention that ``config`` asks for and this environment lacks."""
    name = in_force(config)
    if name is not None and (reason := missing(name)):
        yield (
            f"{sizes.ATTENTION}={name} cannot be used in this environment ({reason}): install it (docs/gpu.md has the "
            f"ways), or set ++{sizes.ATTENTION}=sdpa, which is right without sequence parallelism, though slower."
        )
    if _has_critic(config) and not cpu.enabled() and (reason := missing(sizes.VERLS_ATTENTION)):
        yield (
            "a critic (algorithm.adv_estimator=gae, critic.enable=True) is loaded by verl with "
            f"{sizes.VERLS_ATTENTION}, whatever attn_implementation says, and this environment has none ({reason}): "
            "install it (docs/gpu.md has the ways), or take an estimator without a critic, such as group_relative."
        )


def _has_critic(config: DictConfig) -> bool:
    """By verl's rule, and under an engine that loads it with transformers."""
    wanted = OmegaConf.select(config, "critic.enable")
    wanted = OmegaConf.select(config, "algorithm.adv_estimator") == "gae" if wanted is None else wanted
    return bool(wanted) and OmegaConf.select(config, "critic.strategy") in sizes.FSDP


def _hub_error(name: str) -> str | None:
    """Why transformers cannot take the kernel behind ``name`` from the hub; loads it, at first over the network."""
    from transformers.integrations.hub_kernels import load_and_register_attn_kernel
    from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK
    from transformers.utils.import_utils import is_kernels_available

    if not is_kernels_available():
        return "the package kernels is not installed, or too old for transformers"
    return _error_of(load_and_register_attn_kernel, FLASH_ATTN_KERNEL_FALLBACK.get(name, name))


def _error_of(load: Callable, name: str) -> str | None:
    try:
        getattr(load(name), NEEDED)
    except Exception as error:  # noqa: BLE001 - no network, no such kernel, an extension built for another torch
        return (str(error) or type(error).__name__).splitlines()[0]
    return None
