"""Entry point of group ``vllm.general_plugins``: loaded by vLLM in each of its processes, inert on GPU machines."""

from cppo_verl.integration import cpu
from cppo_verl.integration.on_import import on_import


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
    on_import("vllm.model_executor.layers.fused_moe.experts.cpu_moe", _refuse_experts)


def _refuse_experts(cpu_moe) -> None:
    def refuse(*_, **__):
        raise NotImplementedError(
            "mixture-of-experts models cannot be trained with VERL_PLATFORM=cpu: vLLM's CPU backend packs the experts' "
            "weights once, and the rollout would keep sampling from the first policy. Use a dense model, or a GPU."
        )

    cpu_moe.CPUUnquantizedExperts.process_weights_after_loading = refuse
