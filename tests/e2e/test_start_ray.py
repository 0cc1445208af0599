"""run_scripts/start_ray.sh: two Ray nodes on this machine, and what it says when a cluster does not come together."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests import ROOT

SCRIPT = str(ROOT / "run_scripts/start_ray.sh")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """Nodes of one cluster, each with a state folder of its own."""

    def __init__(self, folder: Path, ray_folder: str):
        self.folder, self.ray_folder, self.port = folder, Path(ray_folder), free_port()

    def environment(self, node: str, **values: str) -> dict[str, str]:
        knobs = {"HEAD": "127.0.0.1", "RAY_PORT": str(self.port), "NNODES": "2", "NGPUS_PER_NODE": "1", "NUM_CPUS": "4"}
        state = {"STATE": str(self.folder / node), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        own = {"HOME": str(self.folder), "RAY_TMPDIR": str(self.ray_folder)}
        return {**inherited, **own, **knobs, **state, **values}

    def start(self, node: str, role: str, **values: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", SCRIPT, role], env=self.environment(node, **values), stdout=-1, stderr=-1, text=True
        )

    def group(self, node: str) -> int:
        return int((self.folder / node / "pid").read_text())

    def stop(self, node: str) -> None:
        subprocess.run(["bash", SCRIPT, "stop"], env=self.environment(node), check=True, timeout=60)


@pytest.fixture
def cluster(tmp_path):
    # Ray's sockets need a short path, and other runs on this machine must not find this cluster
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        made = Cluster(tmp_path, ray_folder)
        yield made
        for node in ("worker", "head"):
            made.stop(node)


def members(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.mark.skipif(" " in sys.executable, reason="Ray's head cannot start from such a path")
def test_two_nodes_come_together_and_go(cluster):
    head = cluster.start("head", "head", WAIT="240")
    pid_file = cluster.folder / "head/pid"
    deadline = time.monotonic() + 60
    while not pid_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    worker = cluster.start("worker", "worker", WAIT="240")
    output, errors = worker.communicate(timeout=300)
    assert worker.returncode == 0, errors
    assert "2 GPUs in the cluster" in output
    output, errors = head.communicate(timeout=300)
    assert head.returncode == 0, errors
    assert f"export RAY_ADDRESS=127.0.0.1:{cluster.port} RAY_AUTH_MODE=token" in output
    assert (cluster.folder / ".ray/auth_token").stat().st_mode & 0o077 == 0

    again = cluster.start("head", "head")
    assert "runs here already" in again.communicate(timeout=60)[1]
    assert again.returncode == 1

    assert (cluster.ray_folder / "ray/ray_current_cluster").exists()
    groups = [cluster.group("head"), cluster.group("worker")]
    assert all(members(group) for group in groups)
    cluster.stop("worker")
    cluster.stop("head")
    assert not any(members(group) for group in groups)
    assert not (cluster.ray_folder / "ray/ray_current_cluster").exists()


def test_stop_waits_for_what_only_sigkill_ends(cluster):
    stubborn = subprocess.Popen(["bash", "-c", "trap '' TERM; while :; do sleep 1; done"], start_new_session=True)
    (cluster.folder / "head").mkdir()
    (cluster.folder / "head/pid").write_text(str(stubborn.pid))
    cluster.stop("head")
    assert not members(stubborn.pid)
    assert stubborn.wait(timeout=10) == -signal.SIGKILL


def test_nodes_that_do_not_come_are_counted(cluster):
    worker = cluster.start("worker", "worker", WAIT="1", RAY_PORT=str(free_port()), RAY_AUTH_TOKEN="0" * 64)
    _, errors = worker.communicate(timeout=200)
    assert worker.returncode == 1
    assert "0 of 2 GPUs (2 nodes x 1) joined 127.0.0.1" in errors and "Is HEAD right" in errors
    assert not (cluster.folder / "worker/pid").exists()


@pytest.mark.parametrize(
    ("role", "values", "sentence"),
    [
        ("boss", {}, "'boss' is not one of: head worker stop"),
        ("head", {"HEAD": ""}, "HEAD is not set"),
        ("head", {"PYTHON": "/bin/false"}, "no Ray in /bin/false"),
        ("head", {"PYTHON": "/a b/python"}, "from a path with a blank, /a b/python"),
        ("worker", {}, "no token here: copy ~/.ray/auth_token from the first node"),
    ],
)
def test_wrong_use_is_named(cluster, role, values, sentence):
    node = cluster.start("head", role, **values)
    assert sentence in node.communicate(timeout=60)[1]
    assert node.returncode == 1
