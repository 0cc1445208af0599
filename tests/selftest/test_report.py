"""The page and its companions: the same numbers in all three, nothing from outside, nothing that is not escaped."""

import json
import re

import pytest

from cppo_verl.selftest import report
from cppo_verl.selftest.machine import Machine
from cppo_verl.selftest.table import NOT_RUN, Result, at_most, equal, judged, noted

HERE = Machine("cpu", facts={"system": "a table", "verl": "0.9.1"})
GOOD = judged("doctor", [equal("versions", "ok", "ok", note="verl <0.9.1>")], 12.4)
ROWS = [at_most("gap", 0.31, 0.2, 0.1, "GB"), noted("time | it took", 1234.5, unit="s")]
BAD = judged("rules", ROWS, 3.0, "died:\n<b>last</b> words")
LEFT = Result("all-sp2", NOT_RUN, reason="not installed: flash_attn")


@pytest.fixture
def written(tmp_path):
    report.write(tmp_path, HERE, [GOOD, BAD, LEFT])
    return tmp_path


def test_the_sentence():
    assert report.sentence([GOOD]) == "1 of 1 stages hold"
    assert report.sentence([GOOD, BAD, LEFT]) == "1 of 2 stages hold; rules fails; not run here: all-sp2"


def test_the_page_stands_alone_and_is_escaped(written):
    page = (written / report.PAGE).read_text()
    assert not re.search(r"<script|<link|<img|src=|https?://|@import|url\(", page)
    assert set(re.findall(r'href="([^"]+)"', page)) == {"#doctor", "#rules", "#all-sp2"}
    assert all(f'id="{name}"' in page for name in ("doctor", "rules", "all-sp2"))
    assert "verl &lt;0.9.1&gt;" in page and "&lt;b&gt;last&lt;/b&gt; words" in page
    assert "1 of 2" in page and "Not run here, because not installed: flash_attn." in page
    assert page.count("<tr") - page.count("<thead><tr") == 3


def test_every_number_is_in_all_three(written):
    page, text = (written / report.PAGE).read_text(), (written / report.TEXT).read_text()
    data = json.loads((written / report.DATA).read_text())
    for shown in ("0.31 GB", "0.2 GB", "0.1 GB", "1,234 s", "a table"):
        assert shown in page and shown in text, shown
    assert data["results"][1]["rows"][0] == {
        "what": "gap",
        "verdict": "fails",
        "measured": 0.31,
        "predicted": 0.1,
        "limit": 0.2,
        "unit": "GB",
        "note": "",
    }
    assert data["machine"] == {"system": "a table", "verl": "0.9.1"}
    assert "| time \\| it took |" in text


def test_a_page_before_the_first_stage(tmp_path):
    report.write(tmp_path, HERE, [])
    assert "0 of 0" in (tmp_path / report.PAGE).read_text()
