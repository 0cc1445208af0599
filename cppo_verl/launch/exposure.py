"""Which Ray a run joins, and how one with a Ray of its own listens on loopback only, as far as its parts let it."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cppo_verl.errors import UserError

LOOPBACK = {
    # Ray's name for it: the node's address is 127.0.0.1, which TransferQueue, vLLM's server and verl then take too
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}


def cluster(ray_init: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """Address of the Ray cluster that ``ray.init`` would join; None where it starts a Ray of its own.

    As Ray does: the address of the config's ``ray_kwargs.ray_init``, RAY_ADDRESS, then the file that ``ray start``
    leaves in Ray's folder.

    Raises:
        UserError: that file cannot be read: somebody else's.
    """
    open_still = (None, "", "auto")
    address = ray_init.get("address")
    if address in open_still:
        address = environment.get("RAY_ADDRESS") or address
    if address in open_still:
        temporary = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"
        note = Path(ray_init.get("_temp_dir") or os.path.join(temporary, "ray")) / "ray_current_cluster"
        try:
            address = (note.exists() and note.read_text(encoding="utf-8", errors="replace").strip()) or address
        except OSError as error:
            raise UserError(
                f"{note} cannot be read ({error.strerror}), and Ray reads it to find a cluster: set RAY_ADDRESS=local "
                "for a Ray of this run's own, with RAY_TMPDIR= a folder of yours."
            ) from None
    return None if address in (None, "", "local") else address


def require_answer(address: str) -> None:
    """Raises UserError where nobody listens at a cluster's address: it ended, and its note stayed."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise UserError(
                f"the Ray cluster at {address} does not answer ({error}). Set RAY_ADDRESS=local for a Ray of the run's "
                "own, or start the cluster (run_scripts/start_ray.sh)."
            ) from None


def loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to a run that starts its own Ray on one machine; what ``environment`` sets keeps its value."""
    return {name: value for name, value in LOOPBACK.items() if name not in environment}
