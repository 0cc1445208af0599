"""The losses in verl's registry: against verl's own DPPO, on extreme inputs, and aggregated by hand."""

import itertools
import math
import re
import types

import pytest
import torch
from tensordict import TensorDict
from verl.trainer.ppo import core_algos
from verl.utils import tensordict_utils
from verl.utils.metric import Metric
from verl.utils.py_functional import append_to_dict
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

from cppo_verl.integration import losses
from cppo_verl.trust_region.knobs import KnobError
from cppo_verl.trust_region.metrics import PREFIX
from tests.helpers import Batch, actor_config, random_batch, run_loss
from tests.integration.micro import jagged

MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
BASIC = {"strategy": "fsdp", "rollout_n": 1, "use_dynamic_bsz": True}
COUNTED = {"dp_size": 1, "batch_num_tokens": 40, "global_batch_size": 8, "loss_scale_factor": 64}


def with_advantages(batch: Batch) -> Batch:
    """The batch with no advantage of 0."""
    batch.advantages[batch.advantages == 0] = 1.0
    return batch


def test_a_name_that_another_package_took_and_a_process_without_the_plug_in(monkeypatch, caplog):
    registry = dict(core_algos.POLICY_LOSS_REGISTRY)
    monkeypatch.setattr(core_algos, "POLICY_LOSS_REGISTRY", registry)
    monkeypatch.setattr(losses, "LISTENERS", [])
    for name in ("cppo", "vanilla"):
        losses.require_registered(name)
    registry["cppo"] = registry["vanilla"]
    with pytest.raises(KnobError, match="verl.trainer.ppo.core_algos has a loss of that name"):
        losses.require_registered("cppo")
    with caplog.at_level("WARNING"):
        losses.register(core_algos)
    assert "policy loss 'cppo' of verl.trainer.ppo.core_algos gives way" in caplog.text
    losses.require_registered("cppo")
    del registry["cppo"]
    with pytest.raises(KnobError, match="was not loaded.*VERL_USE_EXTERNAL_PLUGINS=auto"):
        losses.require_registered("cppo")


# ---- against verl's own DPPO


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["dppo", "cppo"])
def test_tv_is_verls_dppo_tv_to_the_bit(name: str, mode: str):
    """Loss and gradient in float32, whatever verl has counted; ``cppo`` with constant weights and no budget.

    verl's thresholds are clip_ratio_low and clip_ratio_high, its cap is clip_ratio_c; ours are knobs.
    """
    info = {**COUNTED, "dp_size": 2}
    ours = actor_config(info, delta=0.15, weights="constant", budget="none", ratio_cap=15.0)
    clips = {"clip_ratio_low": 0.15, "clip_ratio_high": 0.15, "clip_ratio_c": 15.0}
    theirs = ActorConfig(**BASIC, **clips, policy_loss=PolicyLossConfig("dppo_tv"), global_batch_info=info)
    masked = 0
    for seed in range(2):
        batch = with_advantages(random_batch(seed, rows=450, width=30)).to(torch.float32)
        if seed % 2:
            batch.old_log_prob -= 4.0  # ratios beyond the cap
        loss, gradient, _ = run_loss(name, batch, ours, mode)
        other_loss, other_gradient, _ = run_loss("dppo_tv", batch, theirs, mode)
        assert loss.isfinite()
        assert torch.equal(loss, other_loss)
        assert torch.equal(gradient, other_gradient)
        masked += int(((gradient == 0) & batch.mask.bool()).sum())
    assert masked > 500


# ---- extreme inputs

each_rule = pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("cppo", {}),
        ("cppo", {"divergence": "kl", "delta": 0.1, "delta_b": 0.002}),
        ("cppo", {"budget": "fixed", "weights": "shuffled"}),
        ("cppo", {"gate": "soft", "attenuation": "sapo"}),
        ("cppo", {"gate": "soft", "budget": "none"}),
        ("dppo", {"divergence": "kl"}),
        ("trm_avg", {"divergence": "kl"}),
        ("minpro", {"ratio_cap": 1.28}),
        ("gbpo", {}),
    ],
)


def finite_loss(name: str, batch: Batch, config: ActorConfig) -> torch.Tensor:
    """The gradient, of which and of loss and metrics nothing is infinite or NaN."""
    loss, gradient, reported = run_loss(name, batch, config)
    assert loss.isfinite() and gradient.isfinite().all()
    assert all(math.isfinite(value) for value in reported.values()), reported
    return gradient


@each_rule
def test_extremes_are_finite(name: str, knobs: dict):
    """Half precision, and log pi of -inf, which is no fault: probabilities of 0 and 1 in every pair."""
    config = actor_config(**knobs)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        gradient = finite_loss(name, random_batch(seed=1, rows=60, width=25).to(dtype), config)
        assert gradient.dtype == dtype and (gradient != 0).any()
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        corners = torch.tensor([-math.inf, -1e4, -50.0, -1.0, 0.0], dtype=dtype)
        log_prob, old_log_prob = torch.cartesian_prod(corners, corners[1:]).unbind(1)
        for sign, shape in itertools.product((1.0, -1.0), ((1, -1), (-1, 1))):  # in one response, and each alone
            lp, old = log_prob.reshape(shape), old_log_prob.reshape(shape)
            batch = Batch(lp, old, torch.full_like(lp, sign), torch.ones_like(lp, dtype=torch.long))
            assert (finite_loss(name, batch, config)[lp == -math.inf] == 0).all()


@each_rule
def test_nothing_to_learn_from_is_0_and_not_0_over_0(name: str, knobs: dict):
    """No valid token, in all that verl has counted, and tensors without elements."""
    masked = random_batch(seed=3, rows=4, width=6).to(torch.float32)
    masked.mask.zero_()
    empty = [torch.zeros(shape) for shape in ((0, 5), (3, 0))]
    config = actor_config({**COUNTED, "batch_num_tokens": 0}, **knobs)
    for batch in (masked, *(Batch(nothing, nothing, nothing, nothing.long()) for nothing in empty)):
        for mode in MODES:
            loss, gradient, reported = run_loss(name, batch, config, mode)
            assert loss == 0 and (gradient == 0).all() and gradient.shape == batch.mask.shape
            assert all(value == 0 for value in reported.values())


FAULTS = [  # tensor, value at a token that was sampled, rows where it stands
    ("log_prob", math.nan, [1, 4]),
    ("log_prob", math.inf, [1]),
    ("old_log_prob", math.nan, [4]),
    ("old_log_prob", -math.inf, [0, 1, 2]),
    ("advantages", -math.inf, [0, 3]),
]


@pytest.mark.parametrize("name", ["cppo", "gbpo"])
@pytest.mark.parametrize(("tensor", "value", "rows"), FAULTS)
def test_what_is_not_finite_is_named_whatever_the_rule_decides(name: str, tensor: str, value, rows):
    """Also in responses whose advantage is 0 (the model is broken); the others are not named."""
    for advantage in (1.0, 0.0):
        batch = random_batch(seed=5, rows=5, width=6).to(torch.float32)
        batch.mask.fill_(1)
        batch.advantages.fill_(advantage)
        getattr(batch, tensor)[rows, 2] = value
        said = rf"micro-batch: {tensor}: {len(rows)} tokens in rows {re.escape(str(rows))}\. "
        with pytest.raises(FloatingPointError, match=said):
            run_loss(name, batch, actor_config())


def test_skipping_poisons_the_gradient_and_keeps_the_metrics(caplog: pytest.LogCaptureFixture):
    batch = random_batch(seed=5, rows=5, width=6).to(torch.float32)
    batch.mask.fill_(1)
    expected = run_loss("cppo", batch.rows([0, 2, 3]), actor_config())[2]
    batch.log_prob[1, 2:4] = math.nan
    batch.advantages[4, 0] = math.inf
    loss, gradient, reported = run_loss("cppo", batch, actor_config(on_nonfinite="skip"))
    assert loss.isnan() and gradient.isnan().all()
    assert "log_prob: 2 tokens in rows [1]; advantages: 1 tokens in rows [4]" in caplog.text
    assert reported.pop(PREFIX + "nonfinite_tokens_max") == 3
    assert expected.pop(PREFIX + "nonfinite_tokens_max") == 0
    assert reported == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_verls_optimizer_step_is_left_out_by_a_poisoned_gradient():
    """verl's own ``optimizer_step`` on a plain module: neither weights nor Adam's state move."""
    module = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    engine = types.SimpleNamespace(
        module=module, optimizer=optimizer, optimizer_config=types.SimpleNamespace(clip_grad=1.0), _qat_enabled=False
    )
    for poison in (1.0, math.nan):
        before = [p.detach().clone() for p in module.parameters()]
        module(torch.ones(2, 3)).sum().mul(poison).backward()
        FSDPEngine.optimizer_step(engine)
        moved = any(not torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
        assert moved == (poison == 1.0)
        assert [state["step"].item() for state in optimizer.state.values()] == [1.0, 1.0]


# ---- what the registered function is given beside tensors


def test_rollout_weights_multiply_the_update():
    batch = random_batch(seed=7, rows=20, width=10)
    _, plain, _ = run_loss("cppo", batch, actor_config())
    weights = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, weighted, _ = run_loss("cppo", batch, actor_config(), rollout_is_weights=weights)
    torch.testing.assert_close(weighted, plain * weights, rtol=1e-14, atol=0)
    masked = (plain == 0) & (batch.advantages != 0) & batch.mask.bool()
    assert masked.any()
    dirty = weights.masked_fill(masked | ~batch.mask.bool(), math.nan)
    assert torch.equal(run_loss("cppo", batch, actor_config(), rollout_is_weights=dirty)[1], weighted)
    dirty[plain != 0] = math.nan
    with pytest.raises(FloatingPointError, match="rollout_is_weights"):
        run_loss("cppo", batch, actor_config(), rollout_is_weights=dirty)


# ---- the loss that the trainer installs


def micro_batch(batch: Batch, rows: slice, info: dict) -> tuple[dict, TensorDict, list[torch.Tensor]]:
    """Model output and data as verl's engine hands them over: jagged, two prompt tokens, padding cut off.

    Returns the leaf log-probs of each response as well.
    """
    part = batch.rows(rows)
    lengths = [max(int(row.nonzero().max()) + 1, 1) if row.any() else 1 for row in part.mask]
    leaves = [row[:n].clone().requires_grad_() for row, n in zip(part.log_prob, lengths, strict=True)]
    # verl's log-prob of a token stands one place before it; the last place belongs to no token
    outputs = [torch.cat([leaf.new_zeros(1), leaf, leaf.new_zeros(1)]) for leaf in leaves]

    def cut(x: torch.Tensor) -> torch.Tensor:
        return jagged([row[:n] for row, n in zip(x, lengths, strict=True)])

    tensors = {
        "prompts": jagged([torch.zeros(2, dtype=torch.long) for _ in lengths]),
        "responses": jagged([torch.zeros(n, dtype=torch.long) for n in lengths]),
        "response_mask": cut(part.mask),
        "old_log_probs": cut(part.old_log_prob),
        "rollout_log_probs": cut(part.old_log_prob),
        "advantages": cut(part.advantages),
        losses.BEHIND: torch.arange(len(batch.mask))[rows] % 3,
    }
    data = tensordict_utils.get_tensordict(tensors, info)
    return {"log_probs": jagged(outputs)}, data, leaves


def through_the_trainers_loss(batch: Batch, rows: list[slice], mode: str, **knobs) -> tuple[list, dict]:
    """Gradients of all responses and folded metrics of one update over the given micro-batches."""
    info = {"dp_size": 1, "batch_num_tokens": int(batch.mask.sum()), "global_batch_size": len(batch.mask)}
    knobs_of_ours = actor_config(**knobs).policy_loss
    config = ActorConfig(**BASIC, loss_agg_mode=mode, loss_scale_factor=64, policy_loss=knobs_of_ours)
    gradients: list = []
    reported: dict = {}
    for part in rows:
        output, data, leaves = micro_batch(batch, part, info)
        loss, values = losses.trust_region_loss(config, output, data)
        loss.backward()
        gradients += [leaf.grad for leaf in leaves]
        append_to_dict(reported, values)
    merged = {key: [Metric.aggregate_dp([values])] for key, values in reported.items()}
    return gradients, {key: value[0] for key, value in losses.fold(merged).items()}


@pytest.mark.parametrize(
    ("rule", "knobs", "mode"),
    [
        *(("cppo", {}, mode) for mode in MODES),
        ("cppo", {"gate": "soft", "horizon": "max", "max_response_length": 64}, "seq-mean-token-sum-norm"),
        ("trm_avg", {"divergence": "kl", "delta": 0.01}, "seq-mean-token-sum-norm"),
        ("minpro", {}, "seq-mean-token-sum-norm"),
    ],
)
def test_the_trainers_loss_is_the_registered_one_however_the_batch_is_cut(rule: str, knobs: dict, mode: str):
    """Loss, gradients and metrics of one padded call, of one micro-batch, and of three."""
    batch = random_batch(seed=10, rows=24, width=16)
    info = {**COUNTED, "batch_num_tokens": int(batch.mask.sum()), "global_batch_size": 24}
    loss, gradient, reported = run_loss(rule, batch, actor_config(info, **knobs), mode)
    for cuts in ([slice(0, 24)], [slice(0, 5), slice(5, 6), slice(6, 24)]):
        gradients, folded = through_the_trainers_loss(batch, cuts, mode, loss_mode=rule, **knobs)
        assert folded["actor/pg_loss"] == pytest.approx(loss.item(), rel=1e-12)
        for row, got in enumerate(gradients):
            torch.testing.assert_close(got, gradient[row, : len(got)], rtol=1e-12, atol=0)
            assert (gradient[row, len(got) :] == 0).all()
        for key, value in reported.items():
            if not key.endswith("divergence_p99") or len(cuts) == 1:
                assert folded[key] == pytest.approx(value, rel=1e-6, abs=1e-12), key
        assert folded[PREFIX + "masked_share"] > 0 or rule == "minpro"
        ages = [i for i in range(6) if f"{PREFIX}masked_share_by_staleness/{i}" in folded]
        assert ages == [0, 1, 2] and 0 < folded[PREFIX + "effective_sample_size/tokens"] <= 1
        assert folded[PREFIX + "first_update/divergence_mean"] == folded[PREFIX + "divergence_mean"]
        assert not [key for key in folded if "/sum/" in key or "/count/" in key]


def test_fold_by_hand():
    """Two mini-batches: 1 of 4 tokens masked, then 3 of 12; verl's mean of means would say the same only by luck.

    As one actor update or as two calls of it; no response is 0 versions behind.
    """
    sums = {"masked_share": [1.0, 6.0], "prefix_average": [0.5, 0.1], "divergence_by_position/0": [0.2, 0.4]}
    sums |= {"divergence_by_staleness/0": [0.0, 0.0], "divergence_by_staleness/2": [0.5, 0.5]}
    counts = {"tokens": [4.0, 12.0], "responses": [2.0, 1.0], "divergence_by_position/0/tokens": [1.0, 2.0]}
    counts |= {"divergence_by_staleness/0/tokens": [0.0, 0.0], "divergence_by_staleness/2/tokens": [5.0, 5.0]}
    reported = {f"{PREFIX}sum/{name}": values for name, values in sums.items()}
    reported |= {f"{PREFIX}count/{name}": values for name, values in counts.items()}
    reported |= {PREFIX + "divergence_max": [0.3, 0.7], "actor/grad_norm": [1.0, 2.0]}
    expected = {
        PREFIX + "divergence_max": [0.3, 0.7],
        "actor/grad_norm": [1.0, 2.0],
        PREFIX + "masked_share": [pytest.approx(7 / 16)],
        PREFIX + "first_update/masked_share": [pytest.approx(1 / 4)],
        PREFIX + "prefix_average": [pytest.approx(0.6 / 3)],
        PREFIX + "divergence_by_position/0": [pytest.approx(0.6 / 3)],
        PREFIX + "divergence_by_staleness/2": [pytest.approx(0.1)],
        PREFIX + "first_update/divergence_by_staleness/2": [pytest.approx(0.1)],
    }
    assert losses.fold(reported) == expected
    assert losses.fold(*({key: [values[call]] for key, values in reported.items()} for call in (0, 1))) == expected


# ---- verl's own losses under our trainer


def test_verls_own_loss_obeys_on_nonfinite():
    """verl clamps an infinite log mu to a finite gradient; here it ends the run, or costs the step and no metrics."""
    batch, whole, mode = random_batch(seed=12, rows=8, width=10), [slice(0, 8)], "vanilla"
    batch.mask[3], batch.advantages[3] = 1, 1.0
    finite = batch.rows([0, 1, 2, 4, 5, 6, 7])
    batch.old_log_prob[3, 2] = math.inf
    with pytest.raises(FloatingPointError, match=r"old_log_prob: 1 tokens in rows \[3\]"):
        through_the_trainers_loss(batch, whole, "token-mean", loss_mode=mode)
    gradients, folded = through_the_trainers_loss(batch, whole, "token-mean", loss_mode=mode, on_nonfinite="skip")
    assert torch.cat(gradients).isnan().any()
    assert folded.pop(PREFIX + "nonfinite_tokens_max") == 1
    _, others = through_the_trainers_loss(finite, [slice(0, 7)], "token-mean", loss_mode=mode)
    for key in others.keys() & folded.keys():
        by_age = re.search("importance|staleness|sample_size", key)  # of such a micro-batch these are left out
        assert by_age or not key.startswith(PREFIX) or folded[key] == pytest.approx(others[key]), key


@pytest.mark.parametrize("mode", ["vanilla", "gspo", "sapo"])
def test_what_verls_own_loss_masks_is_read_from_its_gradient(mode: str):
    """The share of the updates that is reported as masked, against 1 - |gradient| / (|A| times the weight).

    Of ``vanilla`` that holds its dual clip: beyond a ratio of 3 an update with A < 0 has no gradient.
    """
    batch = with_advantages(random_batch(seed=14, rows=80, width=16))
    if mode == "vanilla":
        batch.log_prob[::2] = (batch.log_prob[::2] + 1.5).clamp_max(-1e-6)
    tokens, length = batch.tokens(), batch.mask.sum(-1, keepdim=True)
    weight = tokens.ratio
    if mode == "gspo":
        weight = (tokens.log_ratio.sum(-1, keepdim=True) / length.clamp_min(1)).exp().expand_as(tokens.ratio)
    gradients, folded = through_the_trainers_loss(batch, [slice(0, 80)], "seq-mean-token-mean", loss_mode=mode)
    gradient = torch.nn.utils.rnn.pad_sequence([*gradients, torch.zeros(16)], batch_first=True)[:-1]
    kept = (gradient.abs() * length * 80 / (batch.advantages.abs() * weight))[tokens.mask]
    assert 0.05 < kept.mean() < 0.999
    assert folded[PREFIX + "masked_share"] == pytest.approx(1 - kept.mean().item(), rel=1e-5)
    divergence = tokens.divergence("tv")[tokens.mask].mean()
    assert folded[PREFIX + "divergence_mean"] == pytest.approx(divergence.item(), rel=1e-6)
