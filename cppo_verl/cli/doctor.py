"""``cppo-verl doctor``: would a run start on this machine, and if not, why."""

import argparse
import importlib
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata

from cppo_verl import presets

PACKAGES = ("verl", "torch", "ray", "transformers", "tensordict", "TransferQueue", "hydra-core", "math-verify")


class Trouble(Exception):
    """A check that a run would not survive; the message carries the remedy."""


def add_parser(subparsers) -> None:
    """Add ``doctor`` to the command line."""
    parser = subparsers.add_parser("doctor", help="check versions, plug-in, presets, device and vLLM")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line a check; 0 only if every one passed."""
    failed = 0
    for title, check in CHECKS.items():
        try:
            verdict, lines = "ok", list(check())
        except Trouble as trouble:
            verdict, lines = "FAIL", str(trouble).splitlines()
        except Exception as error:  # noqa: BLE001 - a doctor reports every failure
            verdict, lines = "FAIL", traceback.format_exc().rstrip().splitlines()[-8:]
            lines.append(f"{type(error).__name__} while checking {title}")
        failed += verdict == "FAIL"
        print(f"{verdict:>4}  {title}: {lines[0] if lines else ''}")
        for line in lines[1:]:
            print(f"      {line}")
    print(
        "A run would start here." if not failed else f"{failed} of {len(CHECKS)} checks failed: a run would not start."
    )
    return 1 if failed else 0


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()} at {sys.prefix}"
    missing = []
    for name in PACKAGES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise Trouble(f"not installed: {', '.join(missing)}. Run: pip install 'cppo_verl[gpu]' or [cpu]")
    from cppo_verl.integration.checks import SUPPORTED_VERL

    if metadata.version("verl") not in SUPPORTED_VERL:
        raise Trouble(f"verl {metadata.version('verl')} is outside {SUPPORTED_VERL}: install verl==0.9.1")


def _plugin() -> Iterator[str]:
    from cppo_verl.trust_region import extensions
    from cppo_verl.trust_region.rules import BUILT_IN, RULES

    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if policy != "auto" and "cppo_verl" not in policy.split(","):
        raise Trouble(
            f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading cppo_verl; unset it or add cppo_verl"
        )
    entry_points = [e for e in metadata.entry_points(group="verl.plugins") if e.name == "cppo_verl"]
    if not entry_points:
        raise Trouble("no entry point cppo_verl in group verl.plugins: the package is not installed (pip install .)")
    importlib.import_module(entry_points[0].value)  # verl swallows its exception; here it shows
    core_algos = importlib.import_module("verl.trainer.ppo.core_algos")
    for name in RULES:
        loss = core_algos.get_policy_loss_fn(name)
        if not loss.__module__.startswith("cppo_verl."):
            raise Trouble(f"policy loss {name!r} comes from {loss.__module__}: another plug-in registered it later")
    broken = extensions.load_installed()
    if broken:
        said = "; ".join(f"{entry} = {reason}" for entry, reason in broken.items())
        raise Trouble(f"entry points of group {presets.RULES_GROUP} bring no rule: {said}. Repair or uninstall them.")
    how = "by its entry point, in every process of an environment that has cppo_verl installed"
    modules = os.environ.get("VERL_USE_EXTERNAL_MODULES")
    yield f"loaded {how}" + (f"; VERL_USE_EXTERNAL_MODULES={modules} as well" if modules else "")
    ours = ", ".join(name for name in RULES if name in BUILT_IN)
    yield f"policy losses {ours}; advantage estimator group_relative; trainer mode trust_region"
    for name, module in extensions.from_outside().items():
        yield f"rule from outside: {name}, of {module}"


def _presets() -> Iterator[str]:
    from cppo_verl.integration import checks

    found = presets.names()
    if not found:
        raise Trouble(f"no preset in {presets.FOLDER}: reinstall cppo_verl")
    for name in found:
        checks.require(presets.compose(name, ["actor_rollout_ref.rollout.n=8"]))
    yield f"{', '.join(found)} compose over verl's ppo_trainer"


def _device() -> Iterator[str]:
    from verl.plugin.platform import get_platform

    chosen = get_platform()
    if not chosen.is_available():
        raise Trouble(
            f"verl chose the platform {type(chosen).__name__}, but this machine has no such device. "
            "Without a GPU set VERL_PLATFORM=cpu and add +platform=cpu to the command line."
        )
    yield f"verl uses {chosen.device_name} ({type(chosen).__name__}), {chosen.device_count()} visible, " + (
        f"collectives over {chosen.communication_backend_name()}"
    )


def _vllm() -> Iterator[str]:
    import vllm

    third_party = importlib.import_module("verl.third_party.vllm")
    yield f"vLLM {vllm.__version__}, which verl sees as {third_party.vllm_version}"


CHECKS: dict[str, Callable[[], Iterator[str]]] = {
    "versions": _versions,
    "plug-in": _plugin,
    "presets": _presets,
    "device": _device,
    "vLLM": _vllm,
}
