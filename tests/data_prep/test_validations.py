"""A run's validations read back: shares, standard errors over questions, paired gains, texts. Numbers by hand."""

import json
from pathlib import Path

import pytest

from data_prep import storage, validations


def write(run: Path, step: int, right: dict[str, list[bool]]) -> None:
    """One validation as verl writes it; question -> whether each response was right."""
    folder = run / validations.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {"input": question, "output": f"said at {step}", "gts": "7", "score": float(one), "acc": one, "partial": 0.5}
        for question, given in right.items()
        for one in given
    ]
    (folder / f"{step}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(tmp_path / "run", 0, {"a": [True, False], "b": [False, False], "c": [False, True], "d": [False, False]})
    write(tmp_path / "run", 9, {"a": [True, True], "b": [False, False], "c": [True, True], "d": [True, True]})
    write(tmp_path / "run", 10, {"a": [True, True], "b": [True, False], "c": [True, True], "d": [True, True]})
    return tmp_path / "run"


def test_steps_come_in_their_order_and_a_torn_line_is_named(run, capsys):
    text = json.dumps({"input": "a\u2028\u0085b", "acc": True}, ensure_ascii=False)
    (run / validations.FOLDER / "11.jsonl").write_text(text + '\n{"input": "c', encoding="utf-8")
    found = validations.read(run)
    assert list(found) == [0, 9, 10, 11] and list(found[11].input) == ["a\u2028\u0085b"]
    assert "11.jsonl, line 2: the last line is torn and left out" in capsys.readouterr().out


def test_errors_are_over_questions_and_the_gain_is_paired(run):
    found = validations.read(run)
    assert validations.accuracies(found[0]).to_dict() == {"a": 0.5, "b": 0.0, "c": 0.5, "d": 0.0}
    assert validations.gain(found[0], found[10]) == (0.625, pytest.approx((3 * 0.125**2 + 0.375**2) ** 0.5 / 12**0.5))
    with pytest.raises(ValueError, match="no question in common"):
        validations.gain(found[0].assign(input="other"), found[10])


def test_the_page_has_baselines_and_texts(run, tmp_path, capsys):
    storage.write_manifest(tmp_path / "data", {"commonest_answer_accuracy": 0.031})
    storage.write_manifest(tmp_path / "warm", {"accuracy": 0.26, "standard_error": 0.02, "pass@8": 0.7})
    validations.main([str(run), "--data", str(tmp_path / "data"), "--warm-start", str(tmp_path / "warm")])
    text = (run / validations.PAGE).read_text()
    for line in (
        "| always the commonest training answer | 0.031 | | |",
        "| warm start, its own held-out questions (pass@8 0.700) | 0.260 | 0.020 | |",
        "| before the first step | 0.250 | 0.144 | 0.500 |",
        "| step 10 | 0.875 | 0.125 | 0.500 |",
        "From step 0 to step 10: +0.625 with a standard error of 0.125 over 4 questions, paired, 5.0 standard errors.",
        "step 0, wrong, 7 is right:\n\n```text\nsaid at 0\n```",
        "step 10, right:\n\n```text\nsaid at 10\n```",
    ):
        assert line in text
    assert "step 10" in capsys.readouterr().out
    assert validations.fenced("a ` b\n```\n<b>") == "````text\na ` b\n```\n<b>\n````"  # no text ends its block
    for line, words in ((run, "has no manifest with a baseline"), (tmp_path, "has no validations")):
        with pytest.raises(SystemExit, match=words):
            validations.main([str(line), "--data", str(tmp_path)])
