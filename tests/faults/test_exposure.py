"""Nothing is unpickled that somebody else wrote, no secret reaches a log, and one machine keeps to itself."""

import ast
import socket

import pytest

from cppo_verl import presets
from cppo_verl.errors import UserError
from cppo_verl.integration import checks
from cppo_verl.launch import exposure
from tests import ROOT

SOURCES = sorted(
    path for top in ("cppo_verl", "data_prep", "recipe", "hydra_plugins") for path in (ROOT / top).rglob("*.py")
)
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "read_pickle", "unsafe_load", "full_load", "system", "popen"}


def unsafe(source: str) -> list[str]:
    """What in a module runs code that its input could bring along."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in UNSAFE_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        if called in UNSAFE_CALLS or (owner, called) == ("yaml", "load"):
            found.append(called)
        if (owner, called) == ("torch", "load") and given.get("weights_only") is not True:
            found.append("torch.load without weights_only=True")
        found += [name for name in ("allow_pickle", "shell") if given.get(name)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_comes_with_data(path):
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle", "pickle"),
        ("from cloudpickle import loads", "cloudpickle"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("subprocess.run(text, shell=True)", "shell"),
        ("yaml.load(text)", "load"),
    ],
)
def test_the_search_finds(source, name):
    assert unsafe(source) == [name]


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "MY_PASSWORD", "aws_secret"])
def test_secrets_on_the_command_line_are_refused_before_they_are_written(name):
    override = f"+ray_kwargs.ray_init.runtime_env.env_vars.{name}=canary-7fa2"
    with pytest.raises(checks.RunConfigError) as refusal:
        checks.require(presets.compose("cppo", ["actor_rollout_ref.rollout.n=8", override]))
    assert name in str(refusal.value)
    assert "canary" not in str(refusal.value)


def test_other_variables_are_not_secrets():
    override = "+ray_kwargs.ray_init.runtime_env.env_vars.TOKENIZERS_PARALLELISM=false"
    checks.require(presets.compose("cppo", ["actor_rollout_ref.rollout.n=8", override]))


@pytest.mark.parametrize(
    ("ray_init", "environment", "joined"),
    [
        ({}, {}, None),
        ({}, {"RAY_ADDRESS": "local"}, None),
        ({}, {"RAY_ADDRESS": "192.0.2.1:6379"}, "192.0.2.1:6379"),
        ({"address": "192.0.2.2:1"}, {"RAY_ADDRESS": "local"}, "192.0.2.2:1"),
        ({"address": "auto"}, {}, "auto"),  # whatever Ray finds
        ({}, {"RAY_TMPDIR": "UP"}, "192.0.2.3:7"),
        ({}, {"TMPDIR": "UP"}, "192.0.2.3:7"),
        ({}, {"TMPDIR": "UP", "RAY_TMPDIR": "DOWN"}, None),
        ({"_temp_dir": "UP/ray"}, {}, "192.0.2.3:7"),
        ({}, {"RAY_TMPDIR": "UP", "RAY_ADDRESS": "local"}, None),
    ],
)
def test_a_cluster_is_found_as_ray_finds_it(tmp_path, monkeypatch, ray_init, environment, joined):
    from ray._private import services

    (tmp_path / "up/ray").mkdir(parents=True)
    (tmp_path / "up/ray/ray_current_cluster").write_text("192.0.2.3:7\n")
    put = {"UP": str(tmp_path / "up"), "UP/ray": str(tmp_path / "up/ray"), "DOWN": str(tmp_path / "down")}
    ray_init, environment = ({key: put.get(v, v) for key, v in given.items()} for given in (ray_init, environment))
    environment = {"TMPDIR": str(tmp_path / "none"), **environment}
    assert exposure.cluster(ray_init, environment) == joined
    if joined != "auto":  # else Ray looks at the processes of this machine
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert services.canonicalize_bootstrap_address(ray_init.get("address"), ray_init.get("_temp_dir")) == joined


def test_somebody_elses_note_of_a_cluster_is_a_sentence(tmp_path):
    (tmp_path / "ray/ray_current_cluster").mkdir(parents=True)  # unreadable for root as well
    with pytest.raises(UserError, match="set RAY_ADDRESS=local"):
        exposure.cluster({}, {"RAY_TMPDIR": str(tmp_path)})


def test_a_cluster_that_is_over_is_a_sentence():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        listener.listen()
        exposure.require_answer(address)
    with pytest.raises(UserError, match=rf"{address} does not answer .*RAY_ADDRESS=local"):
        exposure.require_answer(address)
    exposure.require_answer("auto")  # which Ray will find


def test_a_folder_that_is_too_long_for_rays_sockets_is_a_sentence():
    exposure.require_short_folder({}, {"TMPDIR": "/tmp/" + "x" * 30})
    for environment in ({"TMPDIR": "/tmp/" + "x" * 40}, {"RAY_TMPDIR": "/tmp/" + "ü" * 20}):
        with pytest.raises(UserError, match="too long a path for Ray's sockets: set RAY_TMPDIR=/tmp"):
            exposure.require_short_folder({}, environment)
    exposure.require_short_folder({}, {"TMPDIR": "/tmp/" + "x" * 40, "RAY_TMPDIR": "/tmp"})


def test_the_user_has_the_last_word():
    chosen = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    assert exposure.loopback({}).keys() > exposure.loopback(chosen).keys() == {"GLOO_SOCKET_IFNAME"}
