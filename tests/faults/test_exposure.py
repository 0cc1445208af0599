"""Nothing is unpickled that somebody else wrote, no secret reaches a log, and one machine keeps to itself."""

import re
import socket

import pytest

from cppo_verl import presets
from cppo_verl.errors import UserError
from cppo_verl.integration import checks
from cppo_verl.launch import exposure
from tests import ROOT


def test_no_code_comes_with_data():
    """What ruff's rules do not look for: it finds pickle, eval, shells and unsafe YAML (pyproject.toml)."""
    sources = [path.read_text() for top in ("cppo_verl", "data_prep", "recipe") for path in (ROOT / top).rglob("*.py")]
    loads = re.findall(r"torch\.load\(.*", "\n".join(sources))
    assert loads and all("weights_only=True" in load for load in loads)
    unsafe = r"allow_pickle|import (pickle|cloudpickle|dill|joblib|marshal|shelve)"
    assert not [source for source in sources if re.search(unsafe, source)]


def test_secrets_on_the_command_line_are_refused_before_they_are_written():
    for name, is_secret in (("WANDB_API_KEY", True), ("aws_secret", True), ("TOKENIZERS_PARALLELISM", False)):
        override = f"+ray_kwargs.ray_init.runtime_env.env_vars.{name}=canary-7fa2"
        said = "\n".join(checks.run_problems(presets.compose("cppo", ["actor_rollout_ref.rollout.n=8", override])))
        assert (name in said) == is_secret and "canary" not in said


@pytest.mark.parametrize(
    ("ray_init", "environment", "joined"),
    [
        ({}, {}, None),
        ({}, {"RAY_ADDRESS": "192.0.2.1:6379"}, "192.0.2.1:6379"),
        ({"address": "192.0.2.2:1"}, {"RAY_ADDRESS": "local"}, "192.0.2.2:1"),
        ({"address": "auto"}, {}, "auto"),  # whatever Ray finds
        ({}, {"RAY_TMPDIR": "UP"}, "192.0.2.3:7"),
        ({}, {"TMPDIR": "UP"}, "192.0.2.3:7"),
        ({"_temp_dir": "UP/ray"}, {}, "192.0.2.3:7"),
        ({}, {"RAY_TMPDIR": "UP", "RAY_ADDRESS": "local"}, None),
    ],
)
def test_a_cluster_is_found_as_ray_finds_it(tmp_path, monkeypatch, ray_init, environment, joined):
    from ray._private import services

    (tmp_path / "up/ray").mkdir(parents=True)
    (tmp_path / "up/ray/ray_current_cluster").write_text("192.0.2.3:7\n")
    put = {"UP": str(tmp_path / "up"), "UP/ray": str(tmp_path / "up/ray")}
    ray_init, environment = ({key: put.get(v, v) for key, v in given.items()} for given in (ray_init, environment))
    environment = {"TMPDIR": str(tmp_path / "none"), **environment}
    assert exposure.cluster(ray_init, environment) == joined
    if joined != "auto":  # else Ray looks at the processes of this machine
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert services.canonicalize_bootstrap_address(ray_init.get("address"), ray_init.get("_temp_dir")) == joined


def test_a_cluster_that_is_over_is_a_sentence():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        listener.listen()
        exposure.require_answer(address)
    with pytest.raises(UserError, match=rf"{address} does not answer .*RAY_ADDRESS=local"):
        exposure.require_answer(address)
    exposure.require_answer("auto")  # which Ray will find


def test_the_user_has_the_last_word():
    chosen = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    assert exposure.loopback({}).keys() > exposure.loopback(chosen).keys() == {"GLOO_SOCKET_IFNAME"}


def test_somebody_elses_note_of_a_cluster_is_a_sentence(tmp_path):
    (tmp_path / "ray/ray_current_cluster").mkdir(parents=True)  # unreadable for root as well
    with pytest.raises(UserError, match="set RAY_ADDRESS=local"):
        exposure.cluster({}, {"RAY_TMPDIR": str(tmp_path)})
