"""Nothing is unpickled that somebody else wrote, no secret reaches a log, and one machine keeps to itself."""

import ast

import pytest

from cppo_verl import presets
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
    ("overrides", "environment", "alone"),
    [
        ([], {}, True),
        (["trainer.nnodes=1"], {"RAY_ADDRESS": "local"}, True),
        (["trainer.nnodes=2"], {}, False),
        ([], {"RAY_ADDRESS": "192.0.2.1:6379"}, False),
        (["+ray_kwargs.ray_init.address=auto"], {}, False),
    ],
)
def test_only_a_run_on_one_machine_is_kept_to_loopback(monkeypatch, tmp_path, overrides, environment, alone):
    monkeypatch.setattr(exposure, "CURRENT_CLUSTER", tmp_path / "none")
    assert bool(exposure.loopback(overrides, environment)) == alone


def test_a_cluster_that_is_up_is_joined_at_its_own_address(monkeypatch, tmp_path):
    monkeypatch.setattr(exposure, "CURRENT_CLUSTER", tmp_path)
    assert exposure.loopback([], {}) == {}
    assert exposure.loopback([], {"RAY_ADDRESS": "local"}) != {}


def test_the_user_has_the_last_word(monkeypatch, tmp_path):
    monkeypatch.setattr(exposure, "CURRENT_CLUSTER", tmp_path / "none")
    chosen = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    assert chosen.keys().isdisjoint(exposure.loopback([], chosen))
