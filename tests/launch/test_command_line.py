"""Wrong presets and knobs are told from the overrides alone, in the launcher's first second."""

import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cppo_verl import presets
from cppo_verl.cli import run
from cppo_verl.launch import command_line
from cppo_verl.launch.sizes import Heads
from cppo_verl.trust_region.knobs import knob_names
from tests import own_rule

KEY = "actor_rollout_ref.actor.policy_loss."


@pytest.mark.parametrize("preset", presets.names())
def test_presets_as_they_are_have_no_problem(preset: str):
    assert command_line.problems([f"+trust_region={preset}", "trainer.total_epochs=3", KEY + "topk=5"]) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("w_min=0", "w_min=0 is outside (0, 1]"),
        ("delta=-0.1", "delta=-0.1 is outside (0, 1]"),
        ("gate=firm", "gate='firm' is not one of hard, soft"),
        ("horizon=batch", "horizon='batch' is not one of response, max"),
        ("max_response_length=0", "max_response_length=0 is outside [1, inf)"),
    ],
)
def test_a_bad_knob_is_named_with_its_range(override: str, said: str):
    for sign in ("", "+", "++"):
        (problem,) = command_line.problems(["+trust_region=cppo", sign + KEY + override])
        assert said in problem


def test_ranges_are_those_of_the_presets_divergence():
    assert command_line.problems(["+trust_region=cppo_kl", KEY + "delta=1.5"]) == []
    assert command_line.problems(["+trust_region=cppo", KEY + "delta=1.5"])


@pytest.mark.parametrize("preset", presets.names())
def test_a_preset_is_read_as_hydra_reads_it(preset: str):
    loss = OmegaConf.to_container(presets.compose(preset).actor_rollout_ref.actor.policy_loss, resolve=False)
    assert command_line._knobs(preset) == {
        name: value for name, value in loss.items() if name in knob_names() and "${" not in str(value)
    }


def test_values_are_read_as_hydra_reads_them():
    texts = ["1", "-2", "1e-6", "0.5", "true", "False", "null", "'a b'", '"1"', "fsdp2", "1_000", "inf", "[1,2]", "x-y"]
    parser = OverridesParser.create()
    for text in texts:
        read = parser.parse_override(f"key={text}").value()
        assert command_line.value(text) == (text if isinstance(read, list) else read)


def test_sizes_are_looked_at_with_the_heads_that_are_known():
    key = "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"
    assert command_line.problems(["+trust_region=cppo", f"{key}=4"]) == []
    (problem,) = command_line.problems(["+trust_region=cppo", f"{key}=4"], Heads(6, 2))
    assert f"{key}=4 with a model of 6 attention heads" in problem
    (problem,) = command_line.problems(["+trust_region=cppo", "trainer.nnodes=0"])
    assert problem == "trainer.nnodes=0 must be a whole number of at least 1."


def test_an_unknown_preset_is_answered_with_the_known_ones():
    (problem,) = command_line.problems(["+trust_region=cpo"])
    assert all(name in problem for name in presets.names())


def test_runs_without_a_preset_are_none_of_our_business():
    assert command_line.problems([KEY + "delta=-1", "trainer.logger=[console]"]) == []


def test_the_launcher_refuses_before_it_touches_anything(tmp_path):
    run_dir = tmp_path / "run"
    command = ["-m", "cppo_verl.cli.main", "run", "--fresh", str(run_dir), "+trust_region=cppo", KEY + "w_min=0"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"{KEY}w_min=0 is outside (0, 1].\n"
    assert not run_dir.exists()
    imports = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=60)
    heavy = {line.split("|")[-1].strip() for line in imports.stderr.splitlines()} & {"torch", "verl", "ray", "hydra"}
    assert not heavy  # what makes the first second enough


def test_the_config_is_kept_only_once_hydra_has_written_all_of_it(tmp_path, capsys):
    hydra = tmp_path / ".hydra"
    hydra.mkdir()
    kept = tmp_path / "config.yaml"
    progress = run._Progress(tmp_path / "metrics", tmp_path / "console", hydra / "config.yaml", kept)
    (hydra / "config.yaml").touch()
    progress.tick()
    assert not kept.exists()
    (hydra / "config.yaml").write_text("trainer: {total_training_steps: 7}\n")
    (hydra / "overrides.yaml").write_text("[]")
    progress.tick()
    assert kept.read_text() == "trainer:\n  total_training_steps: 7\n"
    assert "config accepted" in capsys.readouterr().out


# ---- rules from outside


def test_a_preset_in_a_folder_of_the_search_path(tmp_path, registries):
    own_rule.write(tmp_path)
    own = [f"hydra.searchpath=[{tmp_path}]", "+trust_region=own"]
    assert command_line.problems([*own, KEY + "grace=0"]) == []
    both = command_line.problems([*own, KEY + "grace=-1", KEY + "w_min=0"])
    assert both == [f"{KEY}w_min=0 is outside (0, 1].", f"{KEY}grace=-1 is outside [0, inf)."]
    (problem,) = command_line.problems([*own, KEY + "rule_module=nowhere.py"])
    assert f"{KEY}rule_module=nowhere.py cannot be imported" in problem
    (problem,) = command_line.problems([*own, KEY + "loss_mode=onw"])
    assert "loss_mode='onw' is not one of" in problem and "defines own" in problem
    (problem,) = command_line.problems([own[0], "+trust_region=onw"])
    assert "own" in problem and "cppo" in problem
    assert command_line.problems(["hydra.searchpath=[pkg://somewhere]", "+trust_region=onw"]) == []  # Hydra will say


def test_a_preset_of_an_installed_package(tmp_path, registries, monkeypatch):
    own_rule.write_package(tmp_path, "package_with_own_rule")
    assert "is no preset" in command_line.problems(["+trust_region=own"])[0]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert command_line.problems(["+trust_region=own"]) == []
    assert command_line.problems(["+trust_region=own", KEY + "grace=x"]) == [
        f"{KEY}grace='x' must be a whole number in [0, inf)."
    ]


def test_a_preset_of_ones_own_over_one_of_ours(tmp_path):
    (tmp_path / "trust_region").mkdir()
    text = "# @package _global_\ndefaults: [cppo_kl, _self_]\nactor_rollout_ref: {actor: {policy_loss: {delta: 0.3}}}\n"
    (tmp_path / "trust_region/mine.yaml").write_text(text)
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "+trust_region=mine"]
    assert command_line.problems(overrides) == []
    assert presets.section("mine", [tmp_path], KEY[:-1])["delta_b"] == 0.002
    assert command_line.problems([*overrides, KEY + "delta=-1"]) == [f"{KEY}delta=-1 is outside (0, inf)."]


def test_a_preset_that_hydra_would_misread_or_miss(tmp_path, registries):
    own_rule.write(tmp_path)
    file = tmp_path / "trust_region/own.yaml"
    file.write_text("# mine\n" + file.read_text())
    (problem,) = command_line.problems([f"hydra.searchpath=[{tmp_path}]", "+trust_region=own"])
    assert str(file) in problem and "'# @package _global_'" in problem
    file.rename(file.with_name("cppo.yaml"))
    (problem,) = command_line.problems([f"hydra.searchpath=[{tmp_path}]", "+trust_region=cppo"])
    assert "is a preset of this package" in problem and "cppo.yaml" in problem
