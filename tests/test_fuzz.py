"""Whatever is fed to the parsers, they answer in their own words: a result or their documented error, nothing else.

CPPO_VERL_FUZZ=N takes N times as many examples. What once broke a parser is kept as an example.
"""

import json
import os
from pathlib import Path

import pandas
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.launch import command_line
from cppo_verl.reporting import logs
from cppo_verl.reporting.settings import SettingsError, read_settings
from cppo_verl.trust_region.knobs import KEY_PREFIX, knob_names
from data_prep.problems import BadRow, match_columns, read_problem
from data_prep.sources import DataError, LocalFile, list_columns, read_records

bounded = settings(
    max_examples=25 * int(os.environ.get("CPPO_VERL_FUZZ", "1")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

HUGE = 10**400  # an integer that no float holds
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.just(HUGE), st.floats(), st.text(max_size=8))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


# --- config


ROLLOUT = ("temperature", "top_p", "n", "calculate_log_probs", "logprobs_mode", "name", "engine_kwargs.vllm")
CHECKED = (
    *(f"{KEY_PREFIX}.{name}" for name in (*knob_names(), "loss_mode")),
    *(f"actor_rollout_ref.rollout.{name}" for name in ROLLOUT),
    *("actor_rollout_ref.actor.strategy", "algorithm.adv_estimator", "trainer.v1.trust_region.topk_cutoff"),
)


@pytest.fixture(scope="module")
def composed():
    return presets.compose("cppo_topk", ["actor_rollout_ref.rollout.n=8"])


@bounded
@given(st.dictionaries(st.sampled_from(CHECKED), values, min_size=1, max_size=3))
@example({"actor_rollout_ref.rollout.temperature": "hot"})
@example({"actor_rollout_ref.rollout.n": None})
@example({f"{KEY_PREFIX}.topk": "many"})
@example({f"{KEY_PREFIX}.loss_mode": {"": None}})
def test_start_check_of_any_config(composed, overrides):
    config = composed.copy()
    OmegaConf.set_struct(config, False)
    for key, value in overrides.items():
        OmegaConf.update(config, key, "a big number" if value == HUGE else value, merge=False)
    try:
        checks.require(config)
    except checks.RunConfigError as error:
        assert "  - " in str(error)


@bounded
@given(st.lists(st.text(max_size=20) | st.text(max_size=8).map((KEY_PREFIX + ".delta=").__add__), max_size=3))
@example([f"{KEY_PREFIX}.delta=["])
@example([f"{KEY_PREFIX}.delta=2026-13-45"])
def test_any_command_line(overrides):
    for problem in command_line.problems(["+trust_region=cppo", *overrides]):
        assert problem.endswith(".")


# --- data

ROWS = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i), "id": str(i), "nested": {"a": [i]}} for i in range(20)]
WRITERS = {
    ".parquet": lambda frame, path: frame.to_parquet(path),
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    ".csv": lambda frame, path: frame.drop(columns="nested").to_csv(path, index=False),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, bytes]:
    """A good file of each format."""
    path, found = tmp_path_factory.mktemp("good") / "data", {}
    for ending, write in WRITERS.items():
        write(pandas.DataFrame(ROWS), path)
        found[ending] = path.read_bytes()
    return found


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6), st.integers(0, 40)), max_size=4)


def mutated(content: bytes, changes) -> bytes:
    """``content`` with bytes put in place of others, at places given as shares of its length."""
    for place, inserted, removed in changes:
        at = int(place * len(content))
        content = content[:at] + inserted + content[at + removed :]
    return content


def read_all(path: Path) -> int:
    """Rows that can be used; every unusable row has said why."""
    file, usable = LocalFile(path, {"file": path.name}), 0
    columns = match_columns(list_columns(file), {}, file.name)
    for record in read_records(file):
        try:
            read_problem(record, columns, file.name)
            usable += 1
        except BadRow as error:
            assert f": {record.place}: " in str(error)
    return usable


@bounded
@given(ending=st.sampled_from(sorted(WRITERS)), changes=edits, content=st.none() | st.binary(max_size=200))
@example(ending=".csv", changes=[], content=b"\xff\xfe")
@example(ending=".jsonl", changes=[], content=b'{"problem":' + b"[" * 100_000)
@example(ending=".jsonl", changes=[], content=b'{"problem": 1e999, "answer": ' + b"9" * 5000 + b"}\n")
def test_any_data(tmp_path, good, ending, changes, content):
    path = tmp_path / f"data{ending}"
    path.write_bytes(mutated(good[ending], changes) if content is None else content)
    try:
        usable = read_all(path)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert usable == len(ROWS) or changes or content is not None


# --- logs

LOG = b"".join(b'{"step":%d,"data":{"critic/score/mean":0.%d,"actor/grad_norm":1.5}}\n' % (i, i) for i in range(12))
records = st.dictionaries(st.sampled_from(["step", "data", "x"]), values, max_size=3)
log_lines = st.lists(st.one_of(st.binary(max_size=60), records.map(lambda r: json.dumps(r).encode())), max_size=6)


@bounded
@given(parts=log_lines, changes=edits, skip=st.booleans())
@example(parts=[b'{"step": 1, "data": {"x": ' + b"9" * 5000 + b"}}"], changes=[], skip=False)
@example(parts=[b'{"step": %d, "data": {"x": 1}}' % HUGE], changes=[], skip=False)
@example(parts=[b'{"step": 1e999, "data": {}}', b"[" * 100_000], changes=[], skip=True)
def test_any_log(tmp_path, parts, changes, skip):
    path = tmp_path / "metrics-1.jsonl"
    path.write_bytes(mutated(LOG, changes) + b"\n".join(parts))
    try:
        run = logs.read_run(path, skip_bad_lines=skip)
    except logs.LogError as error:
        assert str(path) in str(error)
    else:
        assert run.frame.index.is_monotonic_increasing and run.frame.index.is_unique
        assert all(dtype == "float64" for dtype in run.frame.dtypes)


@bounded
@given(content=st.binary(max_size=80) | records.map(lambda r: json.dumps(r).encode()))
@example(content=b"a: 2026-13-45")
@example(content=b"? {a: b}\n: c")
@example(content=b"a: ${a}\ndata: ${oc.env:NOT_SET}")
def test_any_settings(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(read_settings(path), dict)
    except SettingsError as error:
        assert str(path) in str(error)
