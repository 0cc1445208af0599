"""``cppo-verl selftest`` as a user types it; what needs no stage to run."""

import argparse

import pytest

from cppo_verl.cli import main, selftest
from cppo_verl.selftest import session
from cppo_verl.selftest.stages import NAMES
from cppo_verl.selftest.table import HOLDS, NOT_RUN, Result, at_most, judged


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")


def test_list_says_what_stages_need_and_take(capsys, tmp_path):
    assert main.main(["selftest", "--list", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in "\n" + said for name in NAMES if name != "recipe")
    assert "about 110 s  One rank, binary divergence" in said
    assert "needs 2 ranks, 6 GB memory, after doctor, after tiny" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--stages", "rules,ruls"], "--stages ruls: no such stage; there are doctor, rules"),
        (["--steps", "2"], "--steps 2: a run is killed after its second step and resumed; give 3 or more"),
        (["--model", "m"], "--model without --recipe"),
        (["--recipe", "qwen9"], "--recipe qwen9: there is no qwen9.sh in run_scripts (qwen3_1p7b,"),
    ],
)
def test_wrong_use_is_named_before_anything_runs(arguments, sentence, capsys, tmp_path):
    assert main.main(["selftest", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fresh_spares_a_folder_that_no_selftest_wrote(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    assert main.main(["selftest", "--fresh", "--stages", "rules", "--out", str(tmp_path)]) == 2
    assert "--fresh would delete" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("verdicts", "strict", "status"),
    [((HOLDS,), False, 0), ((HOLDS, "fails"), False, 1), ((HOLDS, NOT_RUN), False, 0), ((HOLDS, NOT_RUN), True, 1)],
)
def test_the_exit_status(verdicts, strict, status, monkeypatch, tmp_path, capsys):
    made = {
        HOLDS: judged("rules", [at_most("x", 1, 2)]),
        "fails": judged("losses", [at_most("x", 3, 2)]),
        NOT_RUN: Result("all-sp2", NOT_RUN, reason="why"),
    }
    monkeypatch.setattr(session, "run", lambda *_: [made[verdict] for verdict in verdicts])
    assert main.main(["selftest", "--out", str(tmp_path), *(["--strict"] if strict else [])]) == status


def test_the_recipe_is_a_stage_only_when_it_is_asked_for():
    asked = argparse.Namespace(steps=4, model="", recipe="", stages=None)
    assert "recipe" not in [stage.name for stage in selftest.chosen(asked)]
    asked.recipe = "qwen3_8b_base"
    assert [stage.name for stage in selftest.chosen(asked)] == list(NAMES)
