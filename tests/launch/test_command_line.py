"""Wrong presets and knobs are told from the overrides alone, in the launcher's first second."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from cppo_verl import presets
from cppo_verl.cli import main
from cppo_verl.launch import command_line, overrides
from cppo_verl.trust_region.knobs import KEY_PREFIX, knob_names
from tests import own_rule

from . import PATHS

KEY = KEY_PREFIX + "."


@pytest.mark.parametrize("preset", ["cppo_kl", "dppo_async", "nfpo"])
def test_presets_as_they_are_have_no_problem_and_are_read_as_hydra_reads_them(preset: str):
    assert command_line.problems([f"+trust_region={preset}", "trainer.total_epochs=3", KEY + "topk=5"]) == []
    composed = OmegaConf.to_container(OmegaConf.select(presets.compose(preset), KEY_PREFIX), resolve=False)
    read = {name: value for name, value in presets.section(preset, (), KEY_PREFIX).items() if name in knob_names()}
    assert read == {name: composed[name] for name in read}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["+trust_region=cppo", KEY + "w_min=0"], ["w_min=0 is outside (0, 1]"]),
        (["+trust_region=cppo", "++" + KEY + "max_response_length=0"], ["max_response_length=0 is outside [1, inf)"]),
        (["+trust_region=cppo_kl", KEY + "delta=1.5"], []),  # ranges are those of the preset's divergence
        (["+trust_region=cppo", KEY + "delta=-1", KEY + "delta=0.2"], []),  # the last one counts
        (["+trust_region=cppo", "trainer.nnodes=0"], ["trainer.nnodes=0 must be a whole number of at least 1."]),
        (["+trust_region=cpo"], ["'cpo' is no preset", "cppo_topk"]),
        (['+trust_region="cppo"'], []),  # as Hydra reads it
        (["+trust_region=cppo", "a='x"], ["a='x: "]),  # Hydra's own words about its grammar
        (["+trust_region=cppo", "a=1,2"], ["a=1,2: several values are a sweep"]),
        (["hydra.searchpath=[pkg://somewhere]", "+trust_region=onw"], []),  # only Hydra can look there
        ([KEY + "delta=-1", "trainer.logger=[console]"], []),  # without a preset it is none of our business
        (["+trust_region.mine=1"], []),  # a key of the user's own config
    ],
)
def test_what_is_wrong_is_one_sentence(given: list[str], said: list[str]):
    found = command_line.problems(given)
    assert len(found) == bool(said)
    assert all(word in found[0] for word in said)


def test_values_are_hydras():
    given = overrides.parse(["+a.b=1e-6", "++c=null", "d='x=y'", "e=[1,'a b']", "f=${g}", "h=1", "~h", "d@pkg=q"])
    assert given == {"a.b": 1e-6, "c": None, "d": "q", "e": [1, "a b"], "f": "${g}"}


def test_the_launcher_refuses_before_it_touches_anything(tmp_path):
    run_dir = tmp_path / "run"
    command = ["-m", "cppo_verl.cli.main", "run", "--fresh", str(run_dir), "+trust_region=cppo", KEY + "w_min=0"]
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, said) == (2, [f"{KEY}w_min=0 is outside (0, 1]."])
    assert not run_dir.exists()
    assert not {line.split("|")[-1].strip() for line in done.stderr.splitlines()} & {"torch", "verl", "ray"}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["RUN", "--check", "+trust_region=cppo", "actor_rollout_ref.rollout.n=8"], 0, ""),
        (["--check", "RUN", "+trust_region=cppo"], 2, "group of one"),
        (["RUN", "+trust_region=cppo", "--check", KEY + "drft=2"], 2, "drft"),
        (["RUN", "--check", "--config-name=ppo_megatron_trainer", "no.such=1"], 2, "no.such"),
        # a config of one's own may name the preset itself
        (["RUN", "--glance", "--config-name", "mine", "trust_region=cppo", KEY + "w_min=0"], 2, "w_min=0 is outside"),
        (["RUN", "a=1", "--multirun"], 2, "--multirun"),
    ],
)
def test_options_come_in_any_place_and_check_composes_the_run(capsys, tmp_path, words, status, said):
    try:
        ended = main.main(["run", *(str(tmp_path / "run") if word == "RUN" else word for word in words), *PATHS])
    except SystemExit as exit:  # argparse's
        ended = exit.code
    assert ended == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---- rules from outside


def test_a_preset_in_a_folder_of_the_search_path(tmp_path, registries, capsys):
    own_rule.write(tmp_path)
    search, own = f"hydra.searchpath=[file://{tmp_path}]", "+trust_region=own"
    over_ours = "# @package _global_\ndefaults: [cppo_kl, _self_]\n"
    misread = tmp_path / "trust_region/misread.yaml"
    misread.write_text("# mine\n" + over_ours)
    (tmp_path / "trust_region/cppo.yaml").write_text(over_ours)
    for given, problems in (
        ([own], []),
        (["+trust_region=misread"], [f"{misread} has to begin with the line '# @package _global_'"]),
        (["+trust_region=cppo"], ["is a preset of this package"]),
    ):
        found = command_line.problems([search, *given])
        assert len(found) == len(problems) and all(map(str.__contains__, found, problems)), found
    # the whole check finds the rule beside its preset
    whole = ["run", "RUN", "--check", search, own, "actor_rollout_ref.rollout.n=8", *PATHS]
    assert main.main(whole) == 0 and "own" in capsys.readouterr().out
    assert main.main([*whole, KEY + "grace=-1"]) == 2 and "grace=-1" in capsys.readouterr().err


def test_a_preset_of_an_installed_package(tmp_path, registries, monkeypatch):
    own_rule.write_package(tmp_path, "package_with_own_rule")
    assert "is no preset" in command_line.problems(["+trust_region=own"])[0]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert command_line.problems(["+trust_region=own"]) == []
