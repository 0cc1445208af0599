"""Rows, results and how their numbers read."""

import json
import math

import pytest

from cppo_verl.selftest.table import FAILS, HOLDS, NOTED, Result, Row, at_most, equal, judged, noted, show


@pytest.mark.parametrize(
    ("measured", "verdict"), [(0.9, HOLDS), (1.0, HOLDS), (1.1, FAILS), (math.nan, FAILS), (math.inf, FAILS)]
)
def test_a_limit_is_a_limit(measured, verdict):
    assert at_most("x", measured, 1.0).verdict == verdict


def test_equal_and_noted():
    assert equal("x", 3, 3).verdict == HOLDS
    assert equal("x", 3, 4).verdict == FAILS
    assert noted("x", math.nan).verdict == NOTED


@pytest.mark.parametrize(
    ("rows", "reason", "verdict"),
    [
        ([equal("x", 1, 1), noted("y", 2)], "", HOLDS),
        ([equal("x", 1, 1), equal("y", 1, 2)], "", FAILS),
        ([equal("x", 1, 1)], "it died", FAILS),
        ([], "", FAILS),
    ],
)
def test_a_stage_holds_only_with_rows_that_all_hold_and_no_reason(rows, reason, verdict):
    assert judged("rules", rows, reason=reason).verdict == verdict


def test_a_result_survives_json_with_numbers_that_json_lacks():
    result = judged("rules", [at_most("x", math.nan, 1.0, 0.5, "GB", "why"), noted("y", "text")], 3.5, "it died", "key")
    again = Result.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert again.rows[0] == Row("x", FAILS, "nan", 0.5, 1.0, "GB", "why")
    assert (again.rows[1], again.verdict, again.seconds, again.reason, again.key) == (
        result.rows[1],
        FAILS,
        3.5,
        "it died",
        "key",
    )


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (1_234_567, "", "1,234,567"),
        (3.0, "s", "3 s"),
        (1.23456, "x", "1.23 x"),
        (0.0123456, "", "0.0123"),
        (4.321e-7, "", "4.32e-07"),
        (12_345.678, "MB", "12,346 MB"),
        (5e12, "", "5,000,000,000,000"),
        (math.nan, "", "nan"),
        (True, "", "yes"),
        (False, "", "no"),
        (None, "GB", ""),
        ("ok", "GB", "ok"),
    ],
)
def test_numbers_read_well(value, unit, text):
    assert show(value, unit) == text
