"""Replay: the rule that ran gives its recorded gates on every token; shares and overlaps by hand; the top-K."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from cppo_verl import presets
from cppo_verl.cli.main import main
from cppo_verl.recording import batches, candidates, files, replay
from cppo_verl.recording.batches import select
from cppo_verl.recording.numbers import gate_and_cause, pad, padded
from cppo_verl.recording.record import Look, RecordError, Response, StepRecord
from cppo_verl.trust_region import metrics
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import BUILT_IN, evaluate
from cppo_verl.trust_region.topk import TOPK, pack, unpack
from tests import own_rule
from tests.recording.synthetic import run, step_record, with_look

SETTINGS = [
    ("cppo", {}),
    ("cppo", {"gate": "soft"}),
    ("cppo", {"budget": "fixed", "delta_b": 0.005, "weights": "shuffled"}),
    ("cppo", {"budget": "none", "weights": "constant"}),
    ("cppo", {"divergence": "kl", "delta": 0.1, "delta_b": 0.002, "horizon": "max", "max_response_length": 64}),
    ("cppo", {"gate": "restore", "restore_strength": 0.5}),
    ("cppo", {"trace": 4, "trace_cap": 1.2}),
    ("dppo", {}),
    ("dppo", {"gate": "soft"}),
    ("gbpo", {"delta": 0.2}),
    ("trm_max", {"divergence": "kl", "delta": 0.1}),
    ("trm_avg", {"divergence": "kl", "delta": 0.002}),
    ("trm_max_avg", {"divergence": "kl", "delta": 0.1, "delta_b": 0.002}),
    ("minpro", {"ratio_cap": 1.28}),
]


@pytest.mark.parametrize(("rule", "knobs"), SETTINGS)
@pytest.mark.parametrize("epochs", [1, 2])
def test_the_rule_that_ran_gives_its_gates_causes_and_metrics_again(tmp_path, rule, knobs, epochs):
    record = step_record(rule=rule, epochs=epochs, length=300, groups=4, **knobs)
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
    for epoch in range(epochs):
        tokens = pad(record.responses, [r.looks[epoch] for r in record.responses], 0)
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


def test_weights_that_depend_on_the_width_see_the_width_that_was():
    """horizon=max with no maximum takes the tensor's width: of the micro-batch then, whatever the replay pads to."""
    options = {"horizon": "max", "max_response_length": None, "delta": 0.05, "delta_b": 0.005, "w_min": 0.1}
    records = [step_record(step, length=length, **options) for step, length in ((1, 30), (2, 300))]
    parts = batches.batches(records)
    assert len(parts) == 1
    assert replay.replay(parts, [candidates.recorded(parts[0].header)]).tallies[0].differs == 0
    fixed = candidates.of_rule("cppo", ["max_response_length=300"], parts[0].header)
    assert replay.replay(parts, [fixed]).tallies[0].differs > 0


def with_top_k(record: StepRecord, kind: str, k: int = 3) -> StepRecord:
    """The record as ``estimator=topk`` would have made it: a top-K, D_t of ``kind`` from it, and the rule's gates."""
    rng = np.random.default_rng(0)
    knobs = TrustRegionKnobs(**{**record.header.knobs, "estimator": "topk", "divergence": kind, "topk": k})
    responses = []
    for response in record.responses:
        n = response.length
        ids = torch.from_numpy(np.argsort(rng.random((n, 50)), axis=1)[:, :k] + 100)
        log_mu = torch.from_numpy(np.log(rng.dirichlet(np.ones(k + 2), n)[:, :k])).float() - 0.7
        log_mu[rng.random((n, k)) < 0.3] = -torch.inf
        sampled = torch.from_numpy(response.log_mu.copy())
        packed = pack(ids, log_mu, torch.zeros(n, dtype=torch.long), sampled)
        _, coded, rest = unpack(packed, k)
        log_pi = coded + torch.from_numpy(rng.normal(0, 0.2, (n, k))).float()
        divergence = TOPK[kind](log_pi, coded, torch.from_numpy(response.first.log_pi.copy()), sampled, rest)
        seen = {"divergence": divergence.numpy(), "top_k_log_pi": log_pi[coded > -torch.inf].numpy()}
        responses.append(with_look(dataclasses.replace(response, top_k_mu=packed.numpy()), **seen))
    tokens = pad(responses, [r.first for r in responses], 0)
    divergences = padded([r.first.divergence for r in responses], tokens.mask.shape[1])
    decided = gate_and_cause(tokens, evaluate(record.header.rule, tokens, knobs, divergences)[0], knobs.ratio_cap)
    for i, response in enumerate(responses):
        gate, cause = (x[i, : response.length].numpy() for x in decided)
        responses[i] = with_look(response, gate=gate, cause=cause)
    return StepRecord(dataclasses.replace(record.header, knobs=dataclasses.asdict(knobs)), tuple(responses))


@pytest.mark.parametrize("kind", ["tv", "kl"])
def test_top_k_rules_where_there_is_a_top_k(tmp_path, kind):
    record = with_top_k(step_record(length=80), kind)
    files.write(tmp_path, record)
    result, notes = replay.replayed(select(tmp_path))
    tallies = {tally.candidate.name: tally for tally in result.tallies}
    assert tallies["cppo, as it ran"].differs == 0 and tallies["cppo_topk"].removed > 0 and not notes
    assert (tallies["cppo_topk"].differs == 0) == (kind == "tv")  # the preset's own kind
    for response in record.responses:  # the other kind follows from what was recorded
        same = batches.top_k_divergence(response, response.first, kind)
        assert np.allclose(same, response.first.divergence, atol=1e-6)


def test_without_a_top_k_such_rules_are_left_out_or_refused(tmp_path):
    selection = select(run(tmp_path))
    result, notes = replay.replayed(selection)
    names = [tally.candidate.name for tally in result.tallies]
    needy = [name for name in presets.names() if name.endswith("_topk")]
    assert set(names) == {"cppo, as it ran", *presets.names()} - set(needy)
    assert notes == [f"left out, for the record has no top-K of the rollout policy: {', '.join(needy)}"]
    with pytest.raises(RecordError, match="cppo_topk needs mu's top-K, which this record does not have"):
        replay.replayed(selection, ["cppo_topk"])
    with pytest.raises(RecordError, match="needs mu's top-K"):
        replay.replayed(selection, [], [("dppo", ["estimator=topk"])])


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
    assert [tally.candidate.name for tally in result.tallies] == ["cppo"]
    assert "the rule that ran is left out" in notes[0] and "gone.py" in notes[0]


def test_what_was_typed_wrong_is_named(tmp_path, capsys):
    run(tmp_path)
    for arguments, sentence in (
        (["--preset", "cpo"], "'cpo' is no preset; there are"),
        (["--rule", "cpo"], "'cpo' is no rule; there are dppo, cppo"),
        (["--rule", "dppo", "--set", "delta=2"], "policy_loss.delta=2 is outside (0, 1]"),
        (["--rule", "dppo", "--set", "dleta=0.1"], "'dleta' is no knob of dppo"),
        (["--rule", "dppo", "--set", "delta"], "--set delta: write it as KEY=VALUE"),
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
