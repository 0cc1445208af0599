"""What is counted in answers to sums, on a few that are counted by hand."""

import math

import pytest

from benchmarks import worked_sums


def entry(asked: str, *lines: str) -> dict[str, str]:
    return {"input": f"user\nState the final answer: {asked} =\nassistant\n", "output": "\n".join(lines)}


def test_lines_are_counted_by_their_sign_and_long_answers_found():
    found = worked_sums.count(
        [
            entry("3 - 3 + 6", "3-3=-0", "0+6=6"),  # -0 is 0
            entry("5 - 9 + 1", "5-9=-4", "-4+1=-5"),
            entry("8 + 9", "8+9=17", "17+2=19"),  # a line more than asked
            entry("4 - 1", "what?"),
        ]
    )
    assert found["too long"] == pytest.approx(1 / 4)
    assert found["+"] == pytest.approx(3 / 4)
    assert found["-"] == 1


def test_nothing_to_count_is_no_share():
    assert all(math.isnan(share) for share in worked_sums.count([]).values())


def test_the_command_reads_first_and_last_validation(tmp_path, monkeypatch, capsys):
    from tests.data_prep.test_validations import write

    for step in (0, 10, 20):
        write(tmp_path / "run", step, {"8 + 9": [True]})
    monkeypatch.setattr("sys.argv", ["worked_sums", str(tmp_path / "run")])
    worked_sums.main()
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["run, step 0", "run, step 20"]
    assert "too long 0%" in said[0] and "+ nan%" in said[0]
