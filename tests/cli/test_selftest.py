"""``cppo-verl selftest`` as a user types it; what needs no stage to run."""

import pytest

from cppo_verl.cli import main, selftest
from cppo_verl.selftest import session
from cppo_verl.selftest.stages import NAMES
from cppo_verl.selftest.table import FAILS, HOLDS, NOT_RUN, Result


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")


def test_list_says_what_stages_need_and_take(capsys, tmp_path):
    assert main.main(["selftest", "--list", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in "\n" + said for name in NAMES if name != "recipe")
    assert "about 110 s  One rank, binary divergence" in said
    assert "needs 2 ranks, 6 GB memory, after doctor, after tiny" in said
    assert [stage.name for stage in session.chosen(None, 4, "qwen3_8b_base", "")] == list(NAMES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stages", "rules,ruls"], "--stages ruls: no such stage; there are doctor, rules"),
        (["--steps", "2"], "--steps 2: a run is killed after its second step and resumed; give 3 or more"),
        (["--model", "m"], "--model without --recipe"),
        (["--recipe", "qwen9"], "--recipe qwen9: there is no qwen9.sh in run_scripts (qwen3_1p7b,"),
        ([], "pip install pytest"),
    ],
)
def test_wrong_use_is_named_before_anything_runs(arguments, said, capsys, tmp_path, monkeypatch):
    if not arguments:
        monkeypatch.setattr(selftest, "find_spec", lambda name: None)
    assert main.main(["selftest", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("verdicts", "strict", "status"),
    [((HOLDS,), False, 0), ((HOLDS, FAILS), False, 1), ((HOLDS, NOT_RUN), False, 0), ((HOLDS, NOT_RUN), True, 1)],
)
def test_the_exit_status(verdicts, strict, status, monkeypatch, tmp_path):
    results = [Result(stage, verdict) for stage, verdict in zip(("rules", "losses"), verdicts, strict=False)]
    monkeypatch.setattr(session, "run", lambda *_: results)
    assert main.main(["selftest", "--out", str(tmp_path), *(["--strict"] if strict else [])]) == status
