"""The top-K estimator in the actor: from verl's engine class, with logits or fused kernels, to D_t and the loss."""

from types import SimpleNamespace

import pytest
import torch
import verl  # noqa: F401  (loads the plug-in)
from torch.nn.utils.rnn import pad_sequence

from cppo_verl.integration import losses
from cppo_verl.integration.topk import FIELD, fused, logits
from cppo_verl.trust_region.metrics import PREFIX
from tests.integration.micro import TEMPERATURE, VOCABULARY, K, Micro, actor_config, assert_is_expected, jagged


class Engine(fused.TopKEngine):
    """verl's engine class with only what preparing inputs and outputs reads; no process group, no optimizer."""

    def __init__(self):
        self.module = None
        self.pad_to_length, self.use_ulysses_sp, self.ulysses_sequence_parallel_size = None, False, 1

    def _get_packed_pad_size(self, _: int) -> int:
        return 0


def the_loss(student_logits, data) -> dict:
    return losses.trust_region_loss(actor_config(), student_logits=student_logits, data=data)


def outputs_of(micro: Micro, data, packed: bool = True, processor=the_loss) -> dict:
    """What verl's engine puts out for the micro-batch when the model's raw logits are pi's."""
    engine = Engine()
    _, output_args = engine.prepare_model_inputs(data)
    padded = pad_sequence(micro.pi_logits, batch_first=True, padding_value=3.0)
    raw = torch.cat(micro.pi_logits).unsqueeze(0).clone() if packed else padded
    return engine.prepare_model_outputs(SimpleNamespace(logits=raw.requires_grad_()), output_args, data, processor)


@pytest.mark.parametrize(("kind", "packed"), [("tv", True), ("kl", False)])
def test_divergence_through_verls_engine(kind: str, packed: bool):
    """With and without remove-padding; the temperature is not 1, so logits before it would show."""
    micro = Micro()
    data = micro.data(use_remove_padding=packed)
    output = outputs_of(micro, data, packed)
    chosen = [values for name, values in output.items() if name.startswith(logits.CHOSEN)]
    assert len(chosen) == K + 1  # nothing of the vocabulary's width, and no graph
    assert all(x.values().ndim == 1 and x.dtype == torch.float32 and not x.requires_grad for x in chosen)
    divergence, mass = logits.divergence_of(output, data, kind, K)
    assert divergence.shape == (3, 7) and not divergence.requires_grad
    assert_is_expected(divergence, micro, kind)
    for row, (_, length) in enumerate(micro.lengths):
        assert (divergence[row, length:] == 0).all()
        assert ((mass[row, :length] > 0) & (mass[row, :length] <= 1)).all()


@pytest.mark.skipif(logits.sampled_log_prob_is_exact(torch.bfloat16), reason="flash-attention's cross-entropy is here")
def test_half_precision_logits_bring_their_own_normaliser():
    """verl's log-prob from bfloat16 logits is rounded to bfloat16 without flash-attention; it must not set log Z."""
    micro, data = Micro(), Micro().data(use_remove_padding=True)
    micro.pi_logits = [x.bfloat16() for x in micro.pi_logits]
    micro.log_pi = [(x / TEMPERATURE).float().log_softmax(-1) for x in micro.pi_logits]
    divergence, _ = logits.divergence_of(outputs_of(micro, data), data, "tv", K)
    for got, expected in zip(divergence, micro.expected(), strict=True):
        # the sampled token's own log-prob keeps its rounding (2^-9 relative), as in the binary estimator
        assert (got[: len(expected)].double() - expected).abs().max() < 8e-3


def test_the_loss_uses_the_top_k_divergence():
    """Masked tokens are those whose top-K TV, not binary TV, breaks the threshold."""
    micro = Micro(seed=2, lengths=((3, 40), (2, 50), (4, 60)), drift=0.3)
    whole = torch.cat(micro.expected())
    data = micro.data(use_remove_padding=True)
    output = outputs_of(micro, data)

    def metrics_of(estimator: str) -> dict[str, float]:
        config = actor_config(loss_mode="dppo", delta=whole.median().item(), estimator=estimator)
        loss, reported = losses.trust_region_loss(config=config, model_output=output, data=data)
        assert loss.requires_grad
        folded = losses.fold({key: [value.aggregate()] for key, value in reported.items()})
        return {key.removeprefix(PREFIX): values[0] for key, values in folded.items()}

    masked = 0
    for row, (expected, (_, log_pi, tokens)) in enumerate(zip(micro.expected(), micro.responses(), strict=True)):
        rho = (log_pi.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - micro.sampled()[row]).exp()
        masked += ((expected > whole.median()) & ((1 - 2 * (row % 2)) * (rho - 1) > 0)).sum().item()
    found, binary = metrics_of("topk"), metrics_of("binary")
    assert found["masked_share"] == pytest.approx(masked / len(whole), abs=1.5 / len(whole))
    assert found["divergence_mean"] == pytest.approx(whole.mean().item(), abs=1e-4)
    assert 0 < found["topk_mass"] < 1 and "topk_mass" not in binary
    assert binary["divergence_mean"] < 0.9 * found["divergence_mean"]


def test_a_synthetic_row_is_cut_and_a_misfit_refused():
    """verl pads a batch with copies whose response is one masked token; any other misfit is an error."""
    micro = Micro()
    data = micro.data()
    data[FIELD] = jagged([micro.packed(0), micro.packed(0), micro.packed(2)])
    with pytest.raises(ValueError, match="row 1 has 1 response tokens but top-K log-probs for 5"):
        logits.token_index(data, K)
    data["response_mask"] = jagged([torch.ones(5).long(), torch.zeros(1).long(), torch.ones(7).long()])
    assert logits.token_index(data, K).shape == (22, K + 1)


@pytest.mark.parametrize(("kind", "packed"), [("tv", True), ("kl", False)])
def test_divergence_from_the_proximal_policy_on_mus_partition(kind: str, packed: bool):
    """The recompute pass (no loss function) gathers one policy, the update another; D_t is between those two."""
    micro, proximal = Micro(), Micro(drift=0.2)
    data = micro.data(use_remove_padding=packed)
    recomputed = outputs_of(proximal, data, packed, None)
    assert set(recomputed) == {"log_probs", logits.PROXIMAL}
    data[logits.PROXIMAL] = jagged(list(recomputed[logits.PROXIMAL].unbind()))  # as verl puts micro-batches together
    listed = micro.listed()
    micro.log_mu = proximal.log_pi  # the anchor from here on, on mu's tokens
    data["old_log_probs"] = jagged(micro.sampled())
    divergence, _ = logits.divergence_of(outputs_of(micro, data, packed), data, kind, K)
    assert_is_expected(divergence, micro, kind, listed)


# ---- fused kernels


def test_half_precision_logits_are_rounded_as_the_kernels():
    """log Z = the sampled token's logit - its log-prob holds for the logit that verl's kernel used, and no other."""
    generator = torch.Generator().manual_seed(5)
    head = (2 * torch.randn(VOCABULARY, 64, generator=generator)).bfloat16()
    hidden = torch.randn(1, 70, 64, generator=generator).bfloat16()
    index = torch.randint(VOCABULARY, (1, 70, K + 1), generator=generator)
    kernels = {
        "torch": ((hidden @ head.t()) / TEMPERATURE).float(),  # products and quotients in bfloat16
        "triton": (hidden.float() @ head.float().t()) / TEMPERATURE,  # tl.dot accumulates in float32, scaled there
    }
    for rounded in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):  # as in verl's engine
            found = fused.logits_at(hidden, head, index, TEMPERATURE, rounded)
        for backend, whole in kernels.items():
            error = (found - whole.gather(-1, index)).abs().max()
            assert (error < 1e-4) == (rounded == (backend == "torch"))


def test_verls_fused_forwards_are_told_apart():
    from verl.models.transformers import dense_common

    for name, expected in (("forward_with_torch_backend", True), ("forward_with_triton_backend", False)):
        model = type("Patched", (torch.nn.Module,), {"forward": getattr(dense_common, name)})()
        assert fused.rounds(model) is expected


def test_the_engine_is_registered_for_every_device():
    import verl.workers.engine_workers  # noqa: F401
    from verl.workers.engine import EngineRegistry

    for backend in ("fsdp", "fsdp2"):
        assert EngineRegistry._engines["language_model"][backend]["cuda"] is fused.TopKEngine
