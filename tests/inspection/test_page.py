"""The page of single tokens without a browser: chunks give the record back, and what goes wrong ends in words."""

import base64
import dataclasses
import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from cppo_verl.cli.main import main
from cppo_verl.inspection import page
from cppo_verl.inspection.chunks import rounded
from cppo_verl.recording import files, numbers
from cppo_verl.recording.record import PREFIX, TOKEN
from tests.inspection.records import sentence, step_record
from tests.reporting.pages import Page, status
from tests.reporting.runs import realistic_run


def unpacked(data: bytes, layout, texts, length: int) -> dict:
    """A chunk's arrays by name, decoded apart from the page's own script."""
    raw, found, at = zlib.decompress(data), {}, 0
    sizes = dict(zip(("prompt", "text"), texts, strict=True))
    for name, kind in layout:
        width = sizes[name] if kind == "bytes" else length * int(kind[1])
        part, at = raw[at : at + width], at + width
        found[name] = part
        if kind != "bytes":
            planes = np.frombuffer(part, np.uint8).reshape(int(kind[1]), length).T.copy()
            found[name] = planes.reshape(-1).view({"u1": "<u1", "u4": "<u4", "f4": "<f4"}[kind])
    assert at == len(raw)
    return found


def content(path: Path) -> tuple[dict, dict[int, bytes]]:
    """Index and chunks of a page."""
    text = path.read_text(encoding="utf-8")
    index = json.loads(re.search(r'<script type="application/json" id="index">(.*?)</script>', text, re.S)[1])
    chunks = re.findall(r'<script type="text/plain" id="r([0-9]+)">([A-Za-z0-9+/=]*)</script>', text)
    return index, {int(i): base64.b64decode(data) for i, data in chunks}


def inspected(*arguments: object) -> int:
    return main(["inspect", *map(str, arguments)])


@pytest.fixture
def run(tmp_path) -> Path:
    """Three steps of four responses, one empty, some with tool output."""
    for step in (1, 2, 4):
        texts = [sentence(30, step), [], sentence(50, step + 1), sentence(9)]
        files.write(tmp_path / "run", step_record(texts, step=step, tools=3, epochs=2))
    return tmp_path / "run"


def shown_steps(run: Path) -> list[int]:
    return [step["step"] for step in content(run / "report/inspect.html")[0]["steps"]]


@pytest.mark.parametrize("rule", ["cppo", "dppo"])
def test_a_page_holds_every_number_of_the_record(tmp_path, rule):
    record = step_record([sentence(40), [], sentence(60, 1)], rule=rule, tools=2, epochs=2, sampled=True)
    record.responses[2].advantages[3] = 7.0  # of a single token
    files.write(tmp_path, record)
    page.write_page(tmp_path, tmp_path / "out.html")
    index, chunks = content(tmp_path / "out.html")
    rows = index["responses"]
    derived = [numbers.of(record.header, record.responses, last) for last in (False, True)]
    for i, response in enumerate(record.responses):
        found = unpacked(chunks[i], index["layouts"][rows["layout"][i]], rows["texts"][i], response.length)
        own = response.mask
        assert found["text"].decode() == response.text and found["prompt"].decode() == response.prompt
        assert found["id"].tolist() == response.token_ids.tolist()
        assert found["own"].tolist() == own.tolist() if "own" in found else own.all()
        assert ("A" in found) == (i == 2)
        expected = {"mu": response.log_mu, "rollout": response.log_mu - 0.25}
        expected |= {"A": response.advantages} if i == 2 else {}
        for k, look in enumerate(response.looks):
            of = derived[k][i]
            assert found[f"gate{k}"][own].tolist() == look.gate[own].tolist()
            assert found[f"cause{k}"][own].tolist() == look.cause[own].tolist()
            moved = look.log_pi.astype(np.float64) - response.log_mu
            of_look = {"moved": moved, "D": of.divergence, "w": of.weight, "S": of.spent, "limit": of.allowance}
            assert all((f"{name}{k}" in found) == (values is not None) for name, values in of_look.items())
            expected |= {f"{name}{k}": values for name, values in of_look.items() if values is not None}
        for name, values in expected.items():  # to the 12 bits of a mantissa that a page keeps
            np.testing.assert_allclose(found[name], np.asarray(values, np.float32), rtol=2.0**-13, atol=0)
        causes = response.first.cause[own]
        counts = [int(own.sum()), int((causes == TOKEN).sum()), int((causes == PREFIX).sum())]
        assert [rows[name][i] for name in ("own", "token", "prefix")] == counts


def test_rounding_is_to_the_nearest_and_leaves_odd_values_alone():
    values = np.array([1 + 2.0**-13, 1 + 2.0**-13 + 2.0**-20, -3.0, 0.0, np.nan, np.inf, -np.inf], np.float32)
    assert rounded(values)[[1, 2, 3, 5, 6]].tolist() == [1 + 2.0**-12, -3.0, 0.0, np.inf, -np.inf]
    assert np.isnan(rounded(values)[4]) and rounded(values, 23) is values


def test_text_cannot_leave_its_place(tmp_path):
    evil = "</script><script>alert(1)</script><!--"
    record = step_record([[evil, "\0", "\ud7ff"]])
    object.__setattr__(record.responses[0], "uid", evil)
    for name in ("\udc80\udcff", "<script>alert(1)<!--", "a\nb 答 ${x} %s {}"):  # the first is no UTF-8
        folder, titled = tmp_path / name, ["--title", evil] if "<" in name else []
        files.write(folder, record)
        assert inspected(folder, *titled) == 0
        found = Page(folder / "report/inspect.html")
        assert "alert(1)</script>" not in found.source and "<!--" not in found.source
        assert sum(tag == "script" for tag, _ in found.tags) == 4 and found.references == []
        assert "http:" not in found.source and "https:" not in found.source and "@import" not in found.source
        assert content(folder / "report/inspect.html")[0]["responses"]["uid"] == [evil]


def test_which_steps_are_shown(run, monkeypatch, capsys):
    assert inspected(run) == 0 and shown_steps(run) == [1, 2, 4]
    assert f"<title>{run.name}: token by token</title>" in (run / "report/inspect.html").read_text(encoding="utf-8")
    assert inspected(run, "--steps", "2:") == 0 and shown_steps(run) == [2, 4]
    assert "2 steps, 8 responses, 178 tokens; 0.1 MB" in capsys.readouterr().out
    assert inspected(run, "--steps", "x") == 1
    assert capsys.readouterr().err.startswith("cppo-verl inspect: --steps x: ")
    sizes = [path.stat().st_size for path in files.steps(run).values()]
    monkeypatch.setattr(page, "LIMIT", 2 * page.RECORD_SHARE * max(sizes))
    assert inspected(run) == 0 and shown_steps(run) == [1, 4]
    said = capsys.readouterr().err
    assert "it holds one recorded step in 2" in said and "--steps FIRST:LAST[:EVERY] chooses others" in said


def test_what_cannot_be_read_is_left_out_and_where_nothing_can_nothing_is_written(run, tmp_path, capsys):
    path = files.path_of(run, 2)
    path.write_bytes(path.read_bytes()[:-100])
    assert inspected(run) == 0 and shown_steps(run) == [1, 4]
    said = capsys.readouterr().err
    assert said.startswith("note: step 2 is left out: ") and "step-00000002.parquet is no whole record" in said
    shutil.rmtree(run / "report")
    for path in files.steps(run).values():
        path.write_bytes(b"PAR1 nothing PAR1")
    for folder, words in (
        (run, "is no whole record"),
        (tmp_path, "no record: run with trainer"),
    ):
        assert inspected(folder) == 1 and words in capsys.readouterr().err
        assert not (folder / "report").exists()


def test_the_report_of_a_run_writes_the_page_and_links_it(run, tmp_path, capsys):
    folder = realistic_run(tmp_path / "whole", steps=6)
    shutil.copytree(run / "records", folder / "records")
    assert status(folder) == 0
    found = Page(folder / "report/report.html")
    assert [link for link in found.references if link[0] != "#"] == ["inspect.html"]
    assert "3 steps, 12 responses, 267 tokens" in found.text
    assert "[What the trust region did, token by token](inspect.html)" in (folder / "report/report.md").read_text()
    assert len(content(folder / "report/inspect.html")[1]) == 12
    capsys.readouterr()
    shutil.rmtree(folder / "report")
    for path in files.steps(folder).values():
        path.write_bytes(b"torn")
    assert status(folder) == 0
    assert "note: no page of single tokens. " in capsys.readouterr().err
    assert "inspect.html" not in (folder / "report/report.html").read_text(encoding="utf-8")


def test_the_knobs_are_those_that_the_rule_uses():
    def words(rule: str, **knobs) -> list[str]:
        return page.knob_words(step_record([sentence(3)], rule=rule, **knobs).header)

    assert words("cppo") == ["TV, sampled token", "δ 0.15", "δ_b 0.02 (quantile)", "w_min 0.8", "hard gate"]
    assert words("cppo", budget="none", weights="constant")[2:4] == ["no prefix budget", "constant weights"]
    assert words("dppo", delta=0.2, gate="restore") == ["TV, sampled token", "δ 0.2", "restore gate"]
    assert "from the policy that began the step" in words("cppo", anchor="proximal")
    assert words("minpro") == ["TV, sampled token"]
    header = step_record([sentence(3)]).header
    own = dataclasses.replace(header, rule="mine", knobs={**header.knobs, "dro_beta": None, "width": 3})
    assert page.knob_words(own) == ["TV, sampled token", "width 3"]


def test_without_a_threshold_of_tokens_the_shades_end_at_what_there_is(tmp_path):
    record = step_record([sentence(200)], rule="minpro")
    (derived,) = numbers.of(record.header, record.responses)
    files.write(tmp_path, record)
    files.write(tmp_path, step_record([[]], step=2))
    one, other = page.write_page(tmp_path, tmp_path / "out.html").steps
    assert one["delta"] is None and one["scale"] == pytest.approx(np.quantile(derived.divergence, 0.999))
    assert other["delta"] == other["scale"] == 0.15
