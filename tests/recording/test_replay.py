"""Replay: the rule that ran gives its recorded gates on every token; shares and overlaps by hand; the top-K."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cppo_verl import presets
from cppo_verl.cli.main import main
from cppo_verl.recording import batches, candidates, files, numbers, replay
from cppo_verl.recording.batches import select
from cppo_verl.recording.numbers import gate_and_cause, pad
from cppo_verl.recording.record import Look, RecordError, Response, StepRecord
from cppo_verl.trust_region import metrics
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import BUILT_IN, evaluate
from tests import own_rule
from tests.recording.synthetic import run, step_record, with_look

SETTINGS = [
    ("cppo", {}),
    ("cppo", {"gate": "soft"}),
    ("cppo", {"budget": "fixed", "delta_b": 0.005, "weights": "shuffled"}),
    ("cppo", {"divergence": "kl", "delta": 0.1, "delta_b": 0.002, "horizon": "max", "max_response_length": 64}),
    ("cppo", {"gate": "restore", "restore_strength": 0.5}),
    ("cppo", {"trace": 4, "trace_cap": 1.2}),
    ("dppo", {}),
    ("gbpo", {"delta": 0.2}),
    ("trm_max", {"divergence": "kl", "delta": 0.1}),
    ("trm_avg", {"divergence": "kl", "delta": 0.002}),
    ("trm_max_avg", {"divergence": "kl", "delta": 0.1, "delta_b": 0.002}),
    ("minpro", {"ratio_cap": 1.28}),
]


@pytest.mark.parametrize(("rule", "knobs"), SETTINGS)
def test_the_rule_that_ran_gives_its_gates_causes_and_metrics_again(tmp_path, rule, knobs):
    record = step_record(rule=rule, epochs=2, length=200, groups=4, **knobs)
    files.write(tmp_path, record)
    parts, ran = select(tmp_path).batches, candidates.recorded(record.header)
    result = replay.replay(parts, [ran])
    (tally,) = result.tallies
    assert result.recorded_tokens > 1000 and tally.differs == 0 and (tally.removed > 0) == (rule != "minpro")
    for part in parts:
        _, cause = part.decide(ran)
        for row, (response, look) in enumerate(zip(part.responses, part.looks, strict=True)):
            assert np.array_equal(cause[row, : response.length].numpy()[response.mask], look.cause[response.mask])
    sums = []
    for epoch in (0, 1):
        tokens = pad(record.responses, [r.looks[epoch] for r in record.responses])
        verdict, divergence = evaluate(rule, tokens, ran.knobs)
        sums.append(metrics.summarise(tokens, divergence, verdict, ran.knobs.ratio_cap))
    said = metrics.combine(sums).sums
    ours = {"": tally.removed, "_token_threshold": tally.token, "_prefix_budget": tally.prefix}
    ours |= {"_positive": tally.positive}
    ours |= {f"_by_position/{tenth}": share for tenth, share in enumerate(tally.by_position)}
    assert ours == pytest.approx({name: said[f"masked_share{name}"] for name in ours}, abs=1e-4)


def test_every_rule_is_among_the_settings():
    assert {rule for rule, _ in SETTINGS} == set(BUILT_IN)


def by_hand() -> StepRecord:
    """Two responses of ten tokens: one with A > 0 whose last token is far off, one with A < 0 whose first two are.

    mu = 0.5 throughout; pi = 0.5 but where it moved away from the rollout by 0.3: 0.8 for A > 0, 0.2 for A < 0.
    """
    half = np.full(10, np.log(0.5), np.float32)
    up, down = half.copy(), half.copy()
    up[9], down[:2] = np.log(0.8), np.log(0.2)
    record = step_record(rule="dppo", groups=1, size=2)
    responses = []
    for sample, (log_pi, advantage) in enumerate(((up, 1.0), (down, -1.0))):
        look = Look(log_pi, np.ones(10, np.float32), np.zeros(10, np.int8), 0)
        advantages = np.full(10, advantage, np.float32)
        ids, mask = np.zeros(10, np.int32), np.ones(10, bool)
        responses.append(Response(look, "p", sample, "", ids[:1], [""] * 10, ids, mask, half, advantages, 0.0))
    return StepRecord(record.header, tuple(responses))


def test_shares_and_overlap_by_hand():
    parts = batches.batches([by_hand()])
    tried = [("dppo", ["delta=0.35"]), ("dppo", ["delta=0.15"]), ("cppo", ["budget=none", "weights=constant"]),
             ("vanilla", ["clip_ratio_low=0.5", "clip_ratio_high=0.7"])]  # fmt: skip
    result = replay.replay(parts, [candidates.of_rule(*one, parts[0].header) for one in tried])
    assert (result.tokens, result.responses, result.groups) == (20, 2, 1)
    none, three, same, two = result.tallies
    assert (none.removed, none.touched) == (0, 0)
    assert (three.removed, three.positive, three.negative, three.token, three.prefix) == (3, 1, 2, 3, 0)
    assert three.by_position.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert result.by_position.tolist() == [2] * 10
    assert three.differs == 3  # the record says that all were kept
    assert (same.removed, same.by_position.tolist()) == (3, three.by_position.tolist())
    assert two.removed == 2 and two.negative == 2  # 0.2/0.5 is below 1 - 0.5, 0.8/0.5 not above 1 + 0.7
    assert result.overlap(1, 2) == 1.0 and result.overlap(1, 3) == pytest.approx(2 / 3)
    assert result.overlap(0, 1) == 0.0 and result.overlap(0, 0) is None
    assert result.share(three.removed) == pytest.approx(0.15)


def with_top_k(record: StepRecord, kind: str) -> StepRecord:
    """The record as ``estimator=topk`` would have made it, with a D_t of its own and the rule's gates on it."""
    knobs = TrustRegionKnobs(**{**record.header.knobs, "estimator": "topk", "divergence": kind})
    tokens = pad(record.responses, [r.first for r in record.responses])
    divergence = 1.5 * tokens.divergence(kind)
    decided = gate_and_cause(tokens, evaluate(record.header.rule, tokens, knobs, divergence)[0], knobs.ratio_cap)
    columns = dict(zip(("divergence", "gate", "cause"), (divergence, *decided), strict=True))
    responses = [
        with_look(response, **{name: column[row, : response.length].numpy() for name, column in columns.items()})
        for row, response in enumerate(record.responses)
    ]
    return StepRecord(dataclasses.replace(record.header, knobs=dataclasses.asdict(knobs)), tuple(responses))


def test_top_k_rules_where_their_divergence_is_recorded(tmp_path):
    record = with_top_k(step_record(length=80), "tv")
    files.write(tmp_path, record)
    for found, response in zip(numbers.of(record.header, record.responses), record.responses, strict=True):
        assert np.array_equal(found.divergence, np.where(response.mask, response.first.divergence, 0))
    result, notes = replay.replayed(select(tmp_path))
    tallies = {tally.candidate.name: tally for tally in result.tallies}
    assert tallies["cppo, as it ran"].differs == tallies["cppo_topk"].differs == 0 < tallies["cppo_topk"].removed
    assert tallies["cppo"].differs > 0 and not notes


@pytest.mark.parametrize("kind", [None, "kl"])
def test_elsewhere_such_rules_are_left_out_or_refused(tmp_path, kind):
    record = step_record() if kind is None else with_top_k(step_record(), kind)
    files.write(tmp_path, record)
    selection = select(tmp_path)
    result, notes = replay.replayed(selection)
    needy = [name for name in presets.names() if name.endswith("_topk")]
    assert {t.candidate.name for t in result.tallies} == {"cppo, as it ran", *presets.names()} - set(needy)
    assert notes == [f"left out, for the record has no D_t of the rollout policy's top-K: {', '.join(needy)}"]
    with pytest.raises(RecordError, match="cppo_topk needs D_t of mu's top-K, which this record does not have: run"):
        replay.replayed(selection, ["cppo_topk"])


def empty(response: Response) -> Response:
    """The same without a token."""
    columns = {name: getattr(response, name)[:0] for name in ("pieces", "token_ids", "mask", "log_mu", "advantages")}
    look = {name: getattr(response.first, name)[:0] for name in ("log_pi", "gate", "cause")}
    return dataclasses.replace(response, **columns, first=dataclasses.replace(response.first, **look))


def test_empty_responses_and_numbers_that_are_none_do_not_count(tmp_path, capsys):
    """on_nonfinite=skip records what the loss saw; its response does not count, as in the metrics."""
    record = step_record(length=60)
    row = next(i for i, r in enumerate(record.responses) if r.length > 5 and (r.advantages != 0).any())
    log_pi = record.responses[row].first.log_pi.copy()
    log_pi[record.responses[row].mask.argmax()] = np.nan
    odd = with_look(record.responses[row], log_pi=log_pi)
    without = [*record.responses[:row], *record.responses[row + 1 :]]
    files.write(tmp_path, StepRecord(record.header, (*without, odd, empty(odd))))
    (again,) = files.read_run(tmp_path)
    tried = [candidates.recorded(record.header), candidates.of_preset("cppo_soft", record.header)]
    records = again, StepRecord(record.header, tuple(without))
    one, other = (replay.replay(batches.batches([each]), tried) for each in records)
    assert [t.removed for t in one.tallies] == [t.removed for t in other.tallies]
    assert one.tokens == other.tokens > 0
    files.write(tmp_path, StepRecord(record.header, tuple(map(empty, record.responses))))  # and nothing else
    assert main(["replay", str(tmp_path)]) == 0
    assert "0 counted tokens of 8 responses" in capsys.readouterr().out


def test_short_responses_are_not_padded_to_a_long_one():
    long, short = step_record(groups=1, size=2, length=20_000), step_record(groups=30, size=8, length=50)
    parts = batches.batches([StepRecord(long.header, long.responses + short.responses)])
    assert sum(part.tokens.mask.numel() for part in parts) < 4 * sum(r.length for part in parts for r in part.responses)


def test_a_torn_file_is_left_out(tmp_path, capsys):
    run(tmp_path, steps=2)
    assert main(["replay", str(tmp_path)]) == 0
    before = capsys.readouterr().out
    path = files.write(tmp_path, step_record(3))
    path.write_bytes(path.read_bytes()[:-500])
    assert main(["replay", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out == before and "step 3 is left out: " in said.err
    for path in files.steps(tmp_path).values():
        path.write_bytes(b"PAR1")
    assert main(["replay", str(tmp_path)]) == 1 and "is no whole record" in capsys.readouterr().err


def test_a_rule_from_outside_is_replayed(tmp_path, monkeypatch, registries):
    own_rule.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    selection = select(run(tmp_path, length=200), "2")
    assert selection.scope == "step 2" and selection.header.step == 2
    result, _ = replay.replayed(selection, [], [("own", ["rule_module=own.py", "grace=5"])])
    part, tally = selection.batches[0], result.tallies[1]
    assert tally.candidate.name == "own grace=5"
    gone = (part.tokens.divergence("tv") > 0.15).cumsum(-1) > 5
    assert tally.removed == int((part.counted & gone & ~part.tokens.toward_rollout).sum()) > 0


def test_a_rule_that_ran_and_is_gone_is_left_out(tmp_path):
    record = step_record()
    knobs = {**record.header.knobs, "rule_module": "/no/gone.py"}
    header = dataclasses.replace(record.header, rule="gone", knobs=knobs)
    files.write(tmp_path, StepRecord(header, record.responses))
    result, notes = replay.replayed(select(tmp_path), ["cppo"])
    files.write(tmp_path, step_record(step=2))
    assert select(tmp_path).notes == ["the rule or its knobs changed at step 2"]
    assert [tally.candidate.name for tally in result.tallies] == ["cppo"]
    assert "the rule that ran is left out" in notes[0] and "gone.py" in notes[0]


def test_what_was_typed_wrong_is_named(tmp_path, capsys):
    run(tmp_path)
    for arguments, sentence in (
        (["--preset", "cpo"], "'cpo' is no preset; there are"),
        (["--rule", "cpo"], "'cpo' is no rule; there are dppo, cppo"),
        (["--rule", "dppo", "--set", "delta=2e1"], "policy_loss.delta=20.0 is outside (0, 1]"),
        (["--rule", "dppo", "--set", "delta=2026-13-45"], "delta='2026-13-45' must be a number in (0, 1]"),
        (["--rule", "dppo", "--set", "delta=[2"], "--set delta=[2: while parsing a flow sequence"),
        (["--rule", "dppo", "--set", "dleta=0.1"], "'dleta' is no knob of dppo"),
        (["--rule", "dppo", "--set", "delta"], "--set delta: write it as KEY=VALUE"),
        (["--rule", "vanilla", "--set", "clip_ratio_low=x"], "clip_ratio_low='x' must be a number."),
        (["--steps", "8-9"], "--steps 8-9: no recorded step is among them; they are 1 to 3"),
    ):
        assert main(["replay", str(tmp_path), *arguments]) == 1
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["replay", str(tmp_path), "--set", "delta=1"])


def test_the_command_writes_table_and_page(tmp_path, capsys):
    run(tmp_path, length=100, epochs=2)
    assert main(["replay", str(tmp_path), "--rule", "dppo", "--set", "delta=0.05"]) == 0
    out = capsys.readouterr().out
    assert "Replay of the rule that ran gives the recorded gate at all" in out
    assert "dppo delta=0.05" in out
    report = tmp_path / "report"
    rows = pd.read_csv(report / "replay.csv")
    assert rows["rule"].tolist() == ["cppo, as it ran", "dppo delta=0.05"]
    assert rows["masked"].tolist() == pytest.approx((rows["positive"] + rows["negative"]).tolist())
    assert rows["differs_from_recorded"][0] == 0 < rows["differs_from_recorded"][1]
    pairs = pd.read_csv(report / "replay-overlap.csv")
    assert len(pairs) == 1 and 0 < pairs["overlap"][0] < 1
    page = (report / "replay.html").read_text()
    assert "dppo delta=0.05" in page and "http" not in page and "<script" not in page
    assert "## Overlap" in (report / "replay.md").read_text()
