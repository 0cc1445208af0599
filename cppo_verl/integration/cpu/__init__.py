"""verl's real stack without an accelerator: FSDP2 over gloo, vLLM's CPU engine, for tests, laptops and CI.

Chosen by ``VERL_PLATFORM=cpu`` and inert otherwise. Each piece uses the registry that verl, vLLM or Python offers for
it; the functions that are replaced (a process group's backend string, a critic's attention) have none.
"""

import os
import tempfile
from pathlib import Path

from cppo_verl.integration.on_import import on_import
from cppo_verl.launch import supervise

# What torch, vLLM and Ray read from the environment, where the user has not set it
SETTINGS = {
    "VLLM_LOGGING_LEVEL": "WARN",  # as verl gives its workers, for those in which vLLM is imported before
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # engine and trainer share the cores: the system places their threads
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else vLLM turns the executor ``uni`` into ``mp``, to bind threads
    "RAY_prestart_worker_first_driver": "0",  # such workers lack the environment that verl gives: nobody takes them
    "TORCHDYNAMO_DISABLE": "1",  # else a C++ compiler starts for a few small functions, 20 s in a new environment
}


def enabled() -> bool:
    """Whether this process was asked to run verl on the CPU."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def activate() -> None:
    """Register the CPU platform with verl. Called once a process, by the ``verl.plugins`` entry point."""
    from cppo_verl.integration.cpu import platform

    platform.register()
    on_import("verl.workers.engine.fsdp.transformer_impl", _register_engines)
    on_import("verl.utils.model", _load_critic_with_its_own_attention)
    on_import("verl.utils.distributed", _use_gloo_only)
    on_import("verl.checkpoint_engine.base", _register_weights)
    settle()


def settle() -> None:
    """Set what torch, vLLM and Ray read from the environment, where the user has not."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def meeting_place(name: str) -> Path:
    """A file of this run in which processes of this machine meet, where torch's TCP store listens on every address.

    Its path goes through a URL, of which torch leaves out what stands behind ``#`` or ``?``.
    """
    folder = os.environ.get(supervise.MARKER) or "?"
    return Path(tempfile.gettempdir() if set("#?") & set(folder) else folder, name)


def _register_engines(transformer_impl) -> None:
    """verl has not registered FSDP's engines for ``cpu``, and pins what FSDP2 keeps on the host, which needs a GPU."""
    for model_type, engine in (
        ("language_model", transformer_impl.FSDPEngineWithLMHead),
        ("value_model", transformer_impl.FSDPEngineWithValueHead),
    ):
        transformer_impl.EngineRegistry.register(model_type=model_type, backend=["fsdp2"], device="cpu")(engine)
    policy = transformer_impl.CPUOffloadPolicy
    transformer_impl.CPUOffloadPolicy = lambda pin_memory=False: policy(pin_memory=False)


def _register_weights(base) -> None:
    """``checkpoint_engine.backend=gloo``, for rollout engines that do not share the trainer's process."""
    import cppo_verl.integration.cpu.weights  # noqa: F401


def _load_critic_with_its_own_attention(model) -> None:
    """verl loads a critic with flash attention whatever ``override_config.attn_implementation`` says."""
    from transformers import AutoModelForTokenClassification

    def load_valuehead_model(local_path, torch_dtype, model_config, trust_remote_code):
        return AutoModelForTokenClassification.from_pretrained(
            local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code
        )

    model.load_valuehead_model = load_valuehead_model


def _use_gloo_only(distributed) -> None:
    """verl asks for ``cpu:gloo,<device>:<backend>``, which torch rejects for the device cpu.

    On loopback the ranks also meet in a file. Those of one group share the port that verl drew for them, and Ray draws
    a node's id at every start.
    """
    import ray

    original = distributed.initialize_global_process_group_ray

    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        if os.environ.get("MASTER_ADDR") == "127.0.0.1" and ray.is_initialized():
            node = ray.get_runtime_context().get_node_id()
            place = meeting_place(f".group-{node}-{os.environ['MASTER_PORT']}")
            os.environ.setdefault("DIST_INIT_METHOD", f"file://{place}")
        return original(timeout_second=timeout_second, backend=backend or "gloo")

    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray
