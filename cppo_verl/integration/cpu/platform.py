"""verl's platform interface for a machine without an accelerator."""

import contextlib
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


class PlatformCPU(PlatformBase):
    """The CPU as verl's device. Ray counts ranks as fake GPUs (``ray_kwargs.ray_init.num_gpus``)."""

    _module = _CpuDevice("torch_cpu_device")

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return self._module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # never detected by itself: only VERL_PLATFORM=cpu selects it

    def current_device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cpu")  # verl hands this to .to(); a number would mean cuda:<number>

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False  # weights then travel through POSIX shared memory

    def cudart(self) -> None:
        return None


def register() -> None:
    """Make ``cpu`` a platform name of verl's."""
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
