"""Entry point of group ``vllm.general_plugins``: loaded by vLLM in each of its processes, inert on GPU machines."""

from cppo_verl.integration import cpu


def register() -> None:
    """Keep linear weights live under ``VERL_PLATFORM=cpu``.

    vLLM's CPU backend packs a linear layer's weight after loading and then drops ``layer.weight``, which verl refills
    at every policy update. vLLM offers no switch for it, so its dispatch function is replaced.
    """
    if not cpu.enabled():
        return
    import torch
    from vllm.model_executor.layers import utils

    def keep_live_weight(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]

    utils.dispatch_cpu_unquantized_gemm = keep_live_weight
