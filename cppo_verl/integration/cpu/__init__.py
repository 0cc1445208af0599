"""verl's real stack without an accelerator: FSDP2 over gloo, vLLM's CPU engine, for tests, laptops and CI.

Chosen by ``VERL_PLATFORM=cpu`` and inert otherwise. Each piece uses the registry that verl, vLLM or Python offers for
it; the functions that are replaced (a process group's backend string, a critic's attention) have none.
"""

import os
import tempfile
from pathlib import Path

from cppo_verl.launch import supervise


def enabled() -> bool:
    """Whether this process was asked to run verl on the CPU."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def activate() -> None:
    """Register the CPU platform with verl. Called once a process, by the ``verl.plugins`` entry point."""
    from cppo_verl.integration.cpu import distribution, platform
    from cppo_verl.integration.on_import import on_import

    platform.register()
    distribution.register()
    on_import("verl.workers.engine.fsdp.transformer_impl", _register_engine)
    on_import("verl.utils.model", _load_critic_with_its_own_attention)
    on_import("verl.utils.distributed", _use_gloo_only)
    on_import("verl.checkpoint_engine.base", _register_weights)
    settle()


def settle() -> None:
    """Set what torch, vLLM and Ray read from the environment, where the user has not."""
    # The level that verl gives its workers, for those in which vLLM is imported before they are workers.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARN")
    # One engine and one trainer share the cores: let the operating system place their threads.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # Else vLLM turns the executor ``uni`` back into ``mp``, for the sake of that binding.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # The workers that Ray starts in advance lack the environment that verl gives its own: nobody takes them.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # vLLM's sampler and verl's losses would start a C++ compiler for a few small functions, 20 s in a new environment.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def _register_engine(transformer_impl) -> None:
    """FSDP's engines, of policy and critic, build on the platform's device; verl never registered them for ``cpu``.

    verl pins what FSDP2 keeps on the host (``offload_policy``); torch can do that only where there is an accelerator.
    """
    engines = {
        "language_model": transformer_impl.FSDPEngineWithLMHead,
        "value_model": transformer_impl.FSDPEngineWithValueHead,
    }
    for model_type, engine in engines.items():
        transformer_impl.EngineRegistry.register(model_type=model_type, backend=["fsdp2"], device="cpu")(engine)
    policy = transformer_impl.CPUOffloadPolicy
    transformer_impl.CPUOffloadPolicy = lambda pin_memory=False: policy(pin_memory=False)


def _load_critic_with_its_own_attention(model) -> None:
    """verl loads a critic with flash attention whatever ``override_config.attn_implementation`` says."""
    from transformers import AutoModelForTokenClassification

    def load_valuehead_model(local_path, torch_dtype, model_config, trust_remote_code):
        return AutoModelForTokenClassification.from_pretrained(
            local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code
        )

    model.load_valuehead_model = load_valuehead_model


def _register_weights(base) -> None:
    """``checkpoint_engine.backend=gloo``, for rollout engines that do not share the trainer's process."""
    import cppo_verl.integration.cpu.weights  # noqa: F401


def _use_gloo_only(distributed) -> None:
    """verl asks for ``cpu:gloo,<device>:<backend>``; with device cpu torch rejects the repeated key.

    On loopback the ranks also meet in a file, see ``_meeting_place``.
    """
    import ray

    original = distributed.initialize_global_process_group_ray

    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        if os.environ.get("MASTER_ADDR") == "127.0.0.1" and ray.is_initialized():
            os.environ.setdefault("DIST_INIT_METHOD", f"file://{_meeting_place(ray)}")
        return original(timeout_second=timeout_second, backend=backend or "gloo")

    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray


def _meeting_place(ray) -> Path:
    """A file in which the ranks of one worker group on this machine meet; torch's TCP store listens on every address.

    Workers of one group share the port that verl drew for them; Ray draws a node's id at every start. Its path goes
    through a URL, of which torch leaves out what stands behind ``#`` or ``?``.
    """
    folder = os.environ.get(supervise.MARKER, "?")
    folder = tempfile.gettempdir() if set("#?") & set(folder) else folder
    return Path(folder, f".group-{ray.get_runtime_context().get_node_id()}-{os.environ['MASTER_PORT']}")
