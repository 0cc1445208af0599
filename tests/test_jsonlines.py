"""JSON lines: what was written comes back with its types, and a line that is no JSON is named."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cppo_verl import jsonlines

TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


REPORTED = ["2024-01-01", "one\u2028two\u0085three\x0b\x0c\x1c", 12345678901234567890123, 1.5, "1.50", {}]


@given(st.lists(VALUES, max_size=5), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n"]))
@example(REPORTED, False, "\n \n")
def test_what_was_written_comes_back(tmp_path_factory, values, ascii_only, end):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes("".join(json.dumps(value, ensure_ascii=ascii_only) + end for value in values).encode())
    assert repr(jsonlines.read(path)) == repr((values, ""))  # 1, 1.0 and True differ


def test_what_is_no_number_is_a_float_and_blank_lines_are_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("[NaN, -Infinity, 1e999]")
    ((one, two, three),), _ = jsonlines.read(path)
    assert math.isnan(one) and (two, three) == (-math.inf, math.inf)
    path.write_text("\n  \n")
    assert jsonlines.read(path) == ([], "")


TORN = [b'{"a": 1', b'"caf\xc3', b"[" * 100_000]


@pytest.mark.parametrize("torn", TORN, ids=range(len(TORN)))
def test_a_torn_line_is_left_out_at_the_end_and_an_error_before_it(tmp_path, torn):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n\n2\n" + torn)
    values, note = jsonlines.read(path)
    assert values == [1, 2] and f"{path}, line 4" in note and "torn" in note
    path.write_bytes(b"1\n" + torn + b"\n2\n")
    with pytest.raises(jsonlines.LineError, match="a.jsonl, line 2: "):
        jsonlines.read(path)
    assert [line.value for line in jsonlines.lines(path) if not line.fault] == [1, 2]
