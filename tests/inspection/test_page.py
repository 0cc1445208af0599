"""The page of single tokens without a browser: chunks give the record back, and what goes wrong ends in words."""

import base64
import dataclasses
import json
import random
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from cppo_verl.cli.main import main
from cppo_verl.inspection import page
from cppo_verl.inspection.chunks import pack, rounded
from cppo_verl.recording import files, numbers
from cppo_verl.recording.record import PREFIX, TOKEN, RecordError, Response
from tests.inspection.records import sentence, step_record
from tests.reporting.pages import Page, status
from tests.reporting.runs import realistic_run

WIDTHS = {"u1": 1, "u4": 4, "f4": 4}


def unpacked(data: bytes, layout, texts, length: int) -> dict:
    """A chunk's arrays by name, decoded apart from the page's own script."""
    raw, found, at = zlib.decompress(data), {}, 0
    sizes = dict(zip(("prompt", "text"), texts, strict=True))
    for name, kind in layout:
        width = sizes[name] if kind == "bytes" else length * WIDTHS[kind]
        part, at = raw[at : at + width], at + width
        if kind == "bytes":
            found[name] = part
            continue
        planes = np.frombuffer(part, np.uint8).reshape(WIDTHS[kind], length).T.copy()
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


@pytest.mark.parametrize("rule", ["cppo", "dppo", "trm_avg", "minpro"])
def test_a_page_holds_every_number_of_the_record(tmp_path, rule):
    record = step_record([sentence(40), [], sentence(60, 1)], rule=rule, tools=2, epochs=2, sampled=True)
    files.write(tmp_path, record)
    page.write_page(tmp_path, tmp_path / "out.html")
    index, chunks = content(tmp_path / "out.html")
    rows = index["responses"]
    derived = [numbers.of(record.header, record.responses, last) for last in (False, True)]
    for i, response in enumerate(record.responses):
        layout = index["layouts"][rows["layout"][i]]
        found = unpacked(chunks[i], layout, rows["texts"][i], response.length)
        assert found["text"].decode() == response.text and found["prompt"].decode() == response.prompt
        assert found["id"].tolist() == response.token_ids.tolist()
        close(found["rollout"], response.log_mu - 0.25)
        assert found["own"].tolist() == response.mask.tolist() if "own" in found else response.mask.all()
        close(found["mu"], response.log_mu)
        for k, look in enumerate(response.looks):
            of, own = derived[k][i], response.mask
            assert found[f"gate{k}"][own].tolist() == look.gate[own].tolist()
            assert found[f"cause{k}"][own].tolist() == look.cause[own].tolist()
            close(found[f"moved{k}"], look.log_pi.astype(np.float64) - response.log_mu)
            close(found[f"D{k}"], of.divergence)
            for name, values in (("w", of.weight), ("S", of.spent), ("limit", of.allowance)):
                assert (f"{name}{k}" in found) == (values is not None)
                if values is not None:
                    close(found[f"{name}{k}"], values)
    assert rows["own"] == [int(r.mask.sum()) for r in record.responses]
    assert rows["token"] == [cause_count(r, TOKEN) for r in record.responses]
    assert rows["prefix"] == [cause_count(r, PREFIX) for r in record.responses]


def cause_count(response: Response, cause: int) -> int:
    return int((response.first.cause[response.mask] == cause).sum())


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """To the 12 bits of a mantissa that a page keeps."""
    np.testing.assert_allclose(found, np.asarray(expected, np.float32), rtol=2.0**-13, atol=0)


def test_rounding_is_to_the_nearest_and_leaves_odd_values_alone():
    values = np.array([1 + 2.0**-13, 1 + 2.0**-13 + 2.0**-20, -3.0, 0.0, np.nan, np.inf, -np.inf], np.float32)
    assert rounded(values, 12)[[1, 2, 3, 5, 6]].tolist() == [1 + 2.0**-12, -3.0, 0.0, np.inf, -np.inf]
    assert np.isnan(rounded(values, 12)[4])
    assert rounded(values, 23) is values


def test_advantages_of_single_tokens_are_kept():
    record = step_record([sentence(5)])
    record.responses[0].advantages[2] = 7.0
    chunk = pack(record.responses[0], numbers.of(record.header, record.responses))
    found = unpacked(chunk.data, chunk.layout, chunk.texts, 5)
    assert found["A"].tolist() == record.responses[0].advantages.tolist()


def test_text_cannot_leave_its_place(tmp_path):
    evil = "</script><script>alert(1)</script><!--"
    record = step_record([[evil, "\0", "\ud7ff"]])
    object.__setattr__(record.responses[0], "uid", evil)
    draw = random.Random(0)
    letters = [chr(c) for c in (*range(1, 0xD800), *range(0xDC80, 0xDD00), *range(0xE000, 0x2FA20)) if c != ord("/")]
    names = ["".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(20)]
    for name in ("\udc80\udcff", "<script>alert(1)<!--", *names):  # the first, as most others, is no UTF-8
        folder, titled = tmp_path / name, ["--title", evil] if "<" in name else []
        files.write(folder, record)
        assert inspected(folder, *titled) == 0
        found = Page(folder / "report/inspect.html")
        assert "alert(1)</script>" not in found.source and "<!--" not in found.source
        assert sum(tag == "script" for tag, _ in found.tags) == 4 and found.references == []
        assert "http:" not in found.source and "https:" not in found.source and "@import" not in found.source
        assert content(folder / "report/inspect.html")[0]["responses"]["uid"] == [evil]


def test_steps_can_be_chosen(run, capsys):
    def steps_of(*arguments: str) -> list[int]:
        assert inspected(str(run), *arguments) == 0
        return [step["step"] for step in content(run / "report/inspect.html")[0]["steps"]]

    assert steps_of() == [1, 2, 4]
    assert steps_of("--steps", "2") == [2]
    assert steps_of("--steps", "2:") == [2, 4]
    assert steps_of("--steps", ":2") == [1, 2]
    assert steps_of("--steps", "1:4:2") == [1, 4]
    assert "2 steps, 8 responses, 178 tokens; 0.1 MB" in capsys.readouterr().out
    for text in ("3", "x", "1:2:0", "1:2:3:4", ":", "9:"):
        assert inspected(str(run), "--steps", text) == 1
        assert capsys.readouterr().err.startswith(f"cppo-verl inspect: --steps {text}: ")


def test_a_page_that_would_be_too_large_takes_every_so_many_steps_and_says_so(run, monkeypatch, capsys):
    assert page.token_count(files.path_of(run, 1)) == 90
    monkeypatch.setattr(page, "LIMIT", 2 * 90 * page.TOKEN_BYTES)
    assert inspected(str(run)) == 0
    index, _ = content(run / "report/inspect.html")
    assert [step["step"] for step in index["steps"]] == [1, 4]
    assert "it holds one recorded step in 2" in index["notes"][0]
    assert "--steps FIRST:LAST[:EVERY] chooses others" in capsys.readouterr().err


def test_a_torn_step_is_left_out_and_named(run, capsys):
    path = files.path_of(run, 2)
    path.write_bytes(path.read_bytes()[:-100])
    assert inspected(run) == 0
    said = capsys.readouterr().err
    assert said.startswith("note: Step 2 is left out: ") and "step-00000002.parquet is no whole record" in said
    index, _ = content(run / "report/inspect.html")
    assert [step["step"] for step in index["steps"]] == [1, 4] and index["notes"][0].startswith("Step 2 is left out")


def test_when_no_step_can_be_read_nothing_is_written(run, tmp_path, capsys):
    for path in files.steps(run).values():
        path.write_bytes(b"PAR1 nothing PAR1")
    for folder, said in (
        (run, "is no whole record"),
        (tmp_path, "no record: run with trainer.v1.trust_region.record="),
    ):
        assert inspected(folder) == 1 and said in capsys.readouterr().err
        assert not (folder / "report").exists()
    with pytest.raises(RecordError, match="step-00000002"):
        page.write_page(run, run / "x.html", [2])


def test_the_report_of_a_run_writes_the_page_and_links_it(run, tmp_path, capsys):
    folder = realistic_run(tmp_path / "whole", steps=6)
    shutil.copytree(run / "records", folder / "records")
    assert status(str(folder)) == 0
    found = Page(folder / "report/report.html")
    assert [link for link in found.references if link[0] != "#"] == ["inspect.html"]
    assert "3 steps, 12 responses, 267 tokens" in found.text
    assert "[What the trust region did, token by token](inspect.html)" in (folder / "report/report.md").read_text()
    assert len(content(folder / "report/inspect.html")[1]) == 12
    capsys.readouterr()
    shutil.rmtree(folder / "report")
    for path in files.steps(folder).values():
        path.write_bytes(b"torn")
    assert status(str(folder)) == 0
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


def test_without_a_threshold_of_tokens_the_shades_end_at_what_there_is():
    record = step_record([sentence(200)], rule="minpro")
    (derived,) = numbers.of(record.header, record.responses)
    step = page._step(record.header, [[derived]])
    assert step["delta"] is None
    assert step["scale"] == pytest.approx(np.quantile(derived.divergence, 0.999))
    assert page._step(step_record([[]]).header, [])["scale"] == 0.15
