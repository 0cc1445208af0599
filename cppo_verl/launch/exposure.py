"""A run on one machine listens on loopback only, as far as Ray, TransferQueue, vLLM, verl and torch let it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # ray.init joins the cluster it names
LOOPBACK = {
    # Ray's name for it: the node's address is 127.0.0.1, which TransferQueue, vLLM's server and verl then take too
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}


def loopback(overrides: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to the run's environment; none for several machines, or for a Ray cluster that is up already.

    A variable that ``environment`` sets keeps its value, so that RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1 turns this off.
    """
    if not alone(overrides, environment):
        return {}
    return {name: value for name, value in LOOPBACK.items() if name not in environment}


def alone(overrides: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the run starts a Ray of its own, on one machine."""
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    address = given.get("ray_kwargs.ray_init.address", environment.get("RAY_ADDRESS", ""))
    joins = address not in ("", "local") or (not address and CURRENT_CLUSTER.exists())
    return not joins and given.get("trainer.nnodes", "1") == "1"
