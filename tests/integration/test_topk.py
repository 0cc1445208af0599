"""The top-K estimator on verl's own classes: server, agent loop, batches, engine, loss."""

import asyncio
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import verl  # noqa: F401  (loads the plug-in)
from tensordict import TensorDict
from torch import Tensor
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient
from verl.workers.rollout.replica import TokenOutput
from verl.workers.utils.padding import no_padding_2_padding

from cppo_verl import presets
from cppo_verl.integration import checks, losses, topk
from cppo_verl.integration.topk import FIELD, fused, logits
from cppo_verl.integration.topk.agent_loop import Part, carrying, collecting, lay_out
from cppo_verl.trust_region.knobs import KnobError
from cppo_verl.trust_region.metrics import PREFIX
from cppo_verl.trust_region.topk import pack, tv_coding_bound

K, VOCABULARY, TEMPERATURE = 4, 30, 0.7


def jagged(parts: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


class Micro:
    """A micro-batch as the FSDP engine gets it, the policies behind it, and D_t by definition."""

    def __init__(self, seed: int = 0, lengths=((3, 5), (2, 1), (4, 7)), drift: float = 0.5, k: int = K):
        self.k, self.lengths = k, lengths
        generator = torch.Generator().manual_seed(seed)
        sizes = [prompt + response for prompt, response in lengths]
        self.input_ids = [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in sizes]
        # logits at every position, before the temperature; those at position i predict token i + 1
        self.mu_logits = [2 * torch.randn(n, VOCABULARY, generator=generator) for n in sizes]
        self.pi_logits = [x + drift * torch.randn(x.shape, generator=generator) for x in self.mu_logits]
        self.log_mu = [(x / TEMPERATURE).log_softmax(-1) for x in self.mu_logits]
        self.log_pi = [(x / TEMPERATURE).log_softmax(-1) for x in self.pi_logits]

    def response(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """log mu and log pi at the positions that predict the response's tokens, and those tokens."""
        prompt, response = self.lengths[row]
        where = slice(prompt - 1, prompt + response - 1)
        return self.log_mu[row][where], self.log_pi[row][where], self.input_ids[row][prompt:]

    def packed(self, row: int) -> Tensor:
        log_mu, _, tokens = self.response(row)
        ids = log_mu.topk(self.k).indices
        return pack(ids, log_mu.gather(-1, ids), tokens, log_mu.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))

    def data(self, **flags) -> TensorDict:
        rows = range(len(self.lengths))
        sampled = [log_mu.gather(-1, y.unsqueeze(-1)).squeeze(-1) for log_mu, _, y in map(self.response, rows)]
        masks = [torch.ones(response, dtype=torch.long) for _, response in self.lengths]
        tensors = {
            "input_ids": jagged(self.input_ids),
            "position_ids": jagged([torch.arange(len(x)) for x in self.input_ids]),
            "prompts": jagged([x[:p] for x, (p, _) in zip(self.input_ids, self.lengths, strict=True)]),
            "responses": jagged([self.response(row)[2] for row in rows]),
            "response_mask": jagged(masks),
            "loss_mask": jagged(masks),
            "old_log_probs": jagged(sampled),
            "advantages": jagged([torch.full((r,), 1.0 - 2 * (i % 2)) for i, (_, r) in enumerate(self.lengths)]),
            FIELD: jagged([self.packed(row) for row in rows]),
        }
        extra = {"temperature": TEMPERATURE, "distillation_use_topk": True, "topk": self.k, "dp_size": 1}
        extra |= {"batch_num_tokens": sum(r for _, r in self.lengths), "global_batch_size": len(self.lengths)}
        return tensordict_utils.get_tensordict(tensors, extra | flags)

    def expected(self, kind: str = "tv") -> list[Tensor]:
        """D_t of each response from the definition, float64."""
        result = []
        for row in range(len(self.lengths)):
            log_mu, log_pi, tokens = (x.double() if x.is_floating_point() else x for x in self.response(row))
            values = []
            for p, q, y in zip(log_mu.exp(), log_pi.exp(), tokens.tolist(), strict=True):
                listed = sorted({*p.topk(self.k).indices.tolist(), y})
                p_c = torch.cat([p[listed], (1 - p[listed].sum()).view(1)])
                q_c = torch.cat([q[listed], (1 - q[listed].sum()).view(1)])
                tv, kl = 0.5 * (q_c - p_c).abs().sum(), (p_c * (p_c / q_c).log()).sum()
                values.append(tv if kind == "tv" else kl)
            result.append(torch.stack(values))
        return result


def actor_config(**knobs) -> ActorConfig:
    from cppo_verl.integration.config import TrustRegionLossConfig

    knobs = {"estimator": "topk", "topk": K, **knobs}
    return ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, policy_loss=TrustRegionLossConfig(**knobs))


class Engine(fused.TopKEngine):
    """verl's engine class with only what preparing inputs and outputs reads; no process group, no optimizer."""

    def __init__(self, module=None):
        self.module = module
        self.pad_to_length, self.use_ulysses_sp, self.ulysses_sequence_parallel_size = None, False, 1

    def _get_packed_pad_size(self, _: int) -> int:
        return 0


def a_loss(**_):
    """Stands for the loss function where the engine asks whether there is one and does not call it."""
    raise AssertionError("not to be called")


def outputs_of(engine: Engine, micro: Micro, data: TensorDict, config: ActorConfig, packed: bool) -> dict:
    """What verl's engine puts out for the micro-batch when the model's raw logits are pi's."""

    def processor(student_logits: Tensor, data: TensorDict):
        return losses.trust_region_loss(config=config, student_logits=student_logits, data=data)

    _, output_args = engine.prepare_model_inputs(data)
    if packed:
        raw = torch.cat(micro.pi_logits).unsqueeze(0).clone()
    else:
        raw = torch.nn.utils.rnn.pad_sequence(micro.pi_logits, batch_first=True, padding_value=3.0)
    return engine.prepare_model_outputs(SimpleNamespace(logits=raw.requires_grad_()), output_args, data, processor)


def assert_is_expected(divergence: Tensor, micro: Micro, kind: str = "tv") -> None:
    for row, expected in enumerate(micro.expected(kind)):
        got = divergence[row, : len(expected)].double()
        if kind == "tv":
            assert (got - expected).abs().max() <= tv_coding_bound(micro.k) + 1e-6
        else:
            torch.testing.assert_close(got, expected, rtol=1e-2, atol=2e-5)


# ---- from verl's engine to D_t


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["tv", "kl"])
def test_divergence_through_verls_engine(kind: str, packed: bool):
    """With and without remove-padding; the temperature is not 1, so logits before it would show."""
    micro, config = Micro(), actor_config()
    data = micro.data(use_remove_padding=packed)
    output = outputs_of(Engine(), micro, data, config, packed)
    divergence, mass = logits.divergence_of(output, data, kind, K)
    assert divergence.shape == (3, 7) and not divergence.requires_grad
    assert_is_expected(divergence, micro, kind)
    for row, (_, length) in enumerate(micro.lengths):
        assert (divergence[row, length:] == 0).all()
        assert ((mass[row, :length] > 0) & (mass[row, :length] <= 1)).all()


def test_nothing_of_the_vocabularys_width_is_made_and_no_graph():
    micro = Micro()
    raw = torch.cat(micro.pi_logits).unsqueeze(0).requires_grad_()
    found = logits.gather_logits(raw, micro.data(), K)
    assert sorted(found) == sorted(f"{logits.CHOSEN}{i}" for i in range(K + 1))
    assert all(
        x.shape == (1, raw.shape[1]) and x.dtype == torch.float32 and not x.requires_grad for x in found.values()
    )


def test_half_precision_logits_bring_their_own_normaliser():
    """verl's log-prob from bfloat16 logits is rounded to bfloat16 without flash-attention; it must not set log Z."""
    if logits.sampled_log_prob_is_exact(torch.bfloat16):
        pytest.skip("flash-attention's cross-entropy is here")
    micro, data = Micro(), Micro().data(use_remove_padding=True)
    rounded = [x.bfloat16() for x in micro.pi_logits]
    micro.pi_logits = rounded
    micro.log_pi = [(x / TEMPERATURE).float().log_softmax(-1) for x in rounded]
    output = outputs_of(Engine(), micro, data, actor_config(), True)
    assert logits.NORMALISER in output
    divergence, _ = logits.divergence_of(output, data, "tv", K)
    for got, expected in zip(divergence, micro.expected(), strict=True):
        # the sampled token's own log-prob keeps its rounding (2^-9 relative), as in the binary estimator
        assert (got[: len(expected)].double() - expected).abs().max() < 8e-3


@pytest.mark.parametrize(
    "mutation", ["shift", "unsorted", "temperature", "padding", "other rows", "sampled column", "none"]
)
def test_mutations_are_caught(mutation: str, monkeypatch: pytest.MonkeyPatch):
    """Each broken piece between the engine and D_t is seen by the comparison that the tests above make."""
    micro, config = Micro(), actor_config()
    data = micro.data(use_remove_padding=False)
    index = logits.token_index
    if mutation == "shift":
        monkeypatch.setattr(logits, "token_index", lambda d, k: index(d, k).roll(1, 0))
    elif mutation == "unsorted":
        monkeypatch.setattr(logits, "token_index", lambda d, k: index(d, k)[:, [1, 0, *range(2, k + 1)]])
    elif mutation == "sampled column":
        monkeypatch.setattr(logits, "token_index", lambda d, k: index(d, k).roll(1, -1))
    elif mutation == "other rows":
        micro.pi_logits = [x.roll(2, 0) for x in micro.pi_logits]
    elif mutation == "padding":
        monkeypatch.setattr(
            torch.nested, "narrow", lambda x, *_, **__: jagged([r[-n:] for r, n in zip(x, (8, 3, 11), strict=True)])
        )
    elif mutation == "temperature":
        data = micro.data(use_remove_padding=False, temperature=1.0)
    output = outputs_of(Engine(), micro, data, config, packed=False)
    divergence, _ = logits.divergence_of(output, data, "tv", K)
    if mutation == "none":
        assert_is_expected(divergence, micro)
    else:
        with pytest.raises(AssertionError):
            assert_is_expected(divergence, micro)


def test_the_loss_uses_the_top_k_divergence():
    """Masked tokens are those whose top-K TV, not binary TV, breaks the threshold."""
    micro = Micro(seed=2, lengths=((3, 40), (2, 50), (4, 60)), drift=0.3)
    threshold = torch.cat(micro.expected()).median().item()
    config = actor_config(loss_mode="dppo", delta=threshold)
    data = micro.data(use_remove_padding=True)
    output = outputs_of(Engine(), micro, data, config, True)
    loss, reported = losses.trust_region_loss(config=config, model_output=output, data=data)
    folded = losses.fold({key: [value.aggregate()] for key, value in reported.items()})
    masked = total = 0
    for row, expected in enumerate(micro.expected()):
        log_mu, log_pi, tokens = micro.response(row)
        rho = (log_pi - log_mu).gather(-1, tokens.unsqueeze(-1)).squeeze(-1).exp()
        masked += ((expected > threshold) & ((1 - 2 * (row % 2)) * (rho - 1) > 0)).sum().item()
        total += len(expected)
    assert folded[PREFIX + "masked_share"][0] == pytest.approx(masked / total, abs=1.5 / total)
    assert folded[PREFIX + "divergence_mean"][0] == pytest.approx(torch.cat(micro.expected()).mean().item(), abs=1e-4)
    assert 0 < folded[PREFIX + "topk_mass"][0] < 1
    assert loss.requires_grad

    binary = actor_config(loss_mode="dppo", delta=threshold, estimator="binary")
    _, plain = losses.trust_region_loss(config=binary, model_output=output, data=data)
    folded_binary = losses.fold({key: [value.aggregate()] for key, value in plain.items()})
    assert folded_binary[PREFIX + "divergence_mean"][0] < 0.9 * folded[PREFIX + "divergence_mean"][0]
    assert PREFIX + "topk_mass" not in folded_binary


@pytest.mark.parametrize("dynamic", [True, False])
def test_micro_batches_keep_their_rows(dynamic: bool):
    """verl's packing into micro-batches, by tokens or by rows, moves each response with its top-K."""
    lengths = ((3, 5), (2, 1), (4, 7), (2, 9), (5, 3), (3, 3))
    micro = Micro(lengths=lengths)
    data = micro.data(
        use_dynamic_bsz=dynamic,
        max_token_len_per_gpu=16,
        micro_batch_size_per_gpu=2,
        use_remove_padding=True,
        sp_size=1,
    )
    parts, indices = prepare_micro_batches(data, dp_group=None, same_micro_num_in_dp=False)
    assert len(parts) > 2
    seen = []
    for number, part in enumerate(parts):
        rows = indices[number] if dynamic else [2 * number, 2 * number + 1]
        small = Micro(lengths=lengths)
        for name in ("input_ids", "mu_logits", "pi_logits", "log_mu", "log_pi"):
            setattr(small, name, [getattr(micro, name)[row] for row in rows])
        small.lengths = [lengths[row] for row in rows]
        output = outputs_of(Engine(), small, part, actor_config(), True)
        assert_is_expected(logits.divergence_of(output, part, "tv", K)[0], small)
        seen += list(rows)
    assert sorted(seen) == list(range(6))


def test_equal_lengths_arrive_as_a_plain_tensor():
    micro = Micro(lengths=((3, 4), (3, 4)))
    data = micro.data(use_remove_padding=True)
    data[FIELD] = (
        torch.stack(list(data[FIELD].unbind())) if len({len(x) for x in data[FIELD].unbind()}) == 1 else data[FIELD]
    )
    output = outputs_of(Engine(), micro, data, actor_config(), True)
    assert_is_expected(logits.divergence_of(output, data, "tv", K)[0], micro)


def test_a_synthetic_row_is_cut_and_a_misfit_refused():
    """verl pads a batch with copies whose response is one masked token; any other misfit is an error."""
    micro = Micro()
    data = micro.data()
    data[FIELD] = jagged([micro.packed(0), micro.packed(0), micro.packed(2)])
    with pytest.raises(KnobError, match="row 1 has 1 response tokens but top-K log-probs for 5"):
        logits.token_index(data, K)
    data["response_mask"] = jagged([torch.ones(5).long(), torch.zeros(1).long(), torch.ones(7).long()])
    assert logits.token_index(data, K).shape == (22, K + 1)


def test_missing_pieces_are_named():
    micro, config = Micro(), actor_config()
    data = micro.data(use_remove_padding=True)
    output = outputs_of(Engine(), micro, data, config, True)
    with pytest.raises(KnobError, match="did not show its logits"):
        losses.trust_region_loss(config=config, model_output={"log_probs": output["log_probs"]}, data=data)
    del data[FIELD]
    with pytest.raises(KnobError, match=FIELD):
        losses.trust_region_loss(config=config, student_logits=torch.zeros(1, 22, VOCABULARY), data=data)


# ---- the proximal policy's log-probs at mu's top-K


@pytest.mark.parametrize("kind", ["tv", "kl"])
@pytest.mark.parametrize(("packed", "chunks"), [(True, False), (False, False), (True, True)])
def test_divergence_from_the_proximal_policy_on_mus_partition(kind: str, packed: bool, chunks: bool):
    """The recompute pass (no loss function) gathers one policy, the update another; D_t is between those two."""
    micro, proximal = Micro(), Micro(drift=0.2)
    data = micro.data(use_remove_padding=packed)
    engine = Engine()
    _, output_args = engine.prepare_model_inputs(data)
    if packed:
        raw = torch.cat(proximal.pi_logits).unsqueeze(0).clone()
    else:
        raw = torch.nn.utils.rnn.pad_sequence(proximal.pi_logits, batch_first=True, padding_value=3.0)
    recomputed = engine.prepare_model_outputs(SimpleNamespace(logits=raw), output_args, data, None)
    assert set(recomputed) == {"log_probs", logits.PROXIMAL}
    values = recomputed[logits.PROXIMAL]
    if chunks:  # as verl puts micro-batches together
        values = torch.nested.as_nested_tensor(list(values.unbind()), layout=torch.jagged)
    data[logits.PROXIMAL] = values
    listed = [micro.response(row)[0].topk(K).indices for row in range(3)]
    micro.log_mu = proximal.log_pi  # the anchor from here on, on mu's tokens
    sampled = [x.gather(-1, y.unsqueeze(-1)).squeeze(-1) for x, _, y in map(micro.response, range(3))]
    data["old_log_probs"] = jagged(sampled)
    output = outputs_of(Engine(), micro, data, actor_config(), packed)
    divergence, _ = logits.divergence_of(output, data, kind, K)
    for row, ids in enumerate(listed):
        log_p, log_q, tokens = micro.response(row)
        for t, (p, q, y) in enumerate(zip(log_p.double().exp(), log_q.double().exp(), tokens.tolist(), strict=True)):
            chosen = sorted({*ids[t].tolist(), y})
            p_c = torch.cat([p[chosen], (1 - p[chosen].sum()).view(1)])
            q_c = torch.cat([q[chosen], (1 - q[chosen].sum()).view(1)])
            expected = 0.5 * (q_c - p_c).abs().sum() if kind == "tv" else (p_c * (p_c / q_c).log()).sum()
            assert divergence[row, t].item() == pytest.approx(expected.item(), abs=2e-5)


# ---- fused kernels


class TinyModel(torch.nn.Module):
    """A base model that looks hidden states up, an LM head, and verl's fused forward behind them."""

    def __init__(self, hidden: Tensor, head: Tensor):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.forward = lambda **_: (hidden,)  # type: ignore[method-assign]
        self.lm_head = torch.nn.Linear(head.shape[1], head.shape[0], bias=False)
        self.lm_head.weight = torch.nn.Parameter(head)
        self.config = SimpleNamespace(output_attentions=False, output_hidden_states=False)

    @property
    def base_model(self) -> torch.nn.Module:
        return self.model

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.lm_head

    def forward(self, **inputs):
        from verl.models.transformers.dense_common import CausalLMOutputForPPO
        from verl.utils.experimental.torch_functional import FusedLinearForPPO

        hidden = self.model(**inputs)[0]
        labels = inputs.get("shift_labels")
        labels = torch.roll(inputs["input_ids"], -1, -1) if labels is None else labels
        log_probs, entropy = FusedLinearForPPO()(hidden, self.lm_head.weight, labels, inputs["temperature"])
        return CausalLMOutputForPPO(log_probs=log_probs, entropy=entropy)


@pytest.mark.parametrize("packed", [True, False])
def test_fused_kernels_give_the_same_divergence(packed: bool):
    """No logits anywhere: hidden states and K + 1 rows of the LM head, and the kernel's own log-prob."""
    micro = Micro()
    generator = torch.Generator().manual_seed(9)
    head = torch.randn(VOCABULARY, 16, generator=generator)
    hidden = [0.5 * torch.randn(len(x), 16, generator=generator) for x in micro.input_ids]
    micro.pi_logits = [h @ head.t() for h in hidden]
    micro.log_pi = [(x / TEMPERATURE).log_softmax(-1) for x in micro.pi_logits]
    states = torch.cat(hidden).unsqueeze(0) if packed else torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)
    engine = Engine(TinyModel(states, head))
    data = micro.data(use_remove_padding=packed, use_fused_kernels=True)
    for _ in range(2):  # the hook is there once, whatever the number of micro-batches
        inputs, output_args = engine.prepare_model_inputs(data)
        output = engine.prepare_model_outputs(engine.module(**inputs), output_args, data, a_loss)
    assert len(engine.module.model._forward_hooks) == 1
    assert_is_expected(logits.divergence_of(output, data, "tv", K)[0], micro)

    plain = micro.data(use_remove_padding=packed, use_fused_kernels=True, distillation_use_topk=False)
    inputs, output_args = engine.prepare_model_inputs(plain)
    output = engine.prepare_model_outputs(engine.module(**inputs), output_args, plain, None)
    assert set(output) == {"log_probs"}


def test_a_model_that_hides_its_hidden_states_is_named():
    micro = Micro()
    engine = Engine(TinyModel(torch.zeros(1, 22, 16), torch.zeros(VOCABULARY, 16)))
    data = micro.data(use_remove_padding=True, use_fused_kernels=True)
    _, output_args = engine.prepare_model_inputs(data)
    with pytest.raises(KnobError, match="hidden states"):
        output = SimpleNamespace(log_probs=torch.zeros(1, 22), entropy=None)
        engine.prepare_model_outputs(output, output_args, data, a_loss)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_logits_of_chosen_tokens(rows: int):
    generator = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(1, 7, 16, generator=generator), torch.randn(VOCABULARY, 16, generator=generator)
    index = torch.randint(0, VOCABULARY, (1, 7, 5), generator=generator)
    found = fused.logits_at(hidden, head, index, 0.5, rows)
    torch.testing.assert_close(found, ((hidden @ head.t()) / 0.5).gather(-1, index))


def kernel_logits(hidden: Tensor, head: Tensor, backend: str) -> Tensor:
    """The float32 logits behind the log-probs of verl's fused kernels, from bfloat16 hidden states and LM head.

    torch: products and quotients in bfloat16. triton: ``tl.dot`` accumulates in float32, scaled there.
    """
    if backend == "torch":
        return ((hidden @ head.t()) / TEMPERATURE).float()
    return (hidden.float() @ head.float().t()) / TEMPERATURE


@pytest.mark.parametrize("rounded_as", ["torch", "triton"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_half_precision_logits_are_rounded_as_the_kernels(backend: str, rounded_as: str, monkeypatch):
    """log Z = the sampled token's logit - its log-prob holds for the logit that the kernel used, and no other."""
    micro = Micro(lengths=((3, 30), (2, 41)))
    generator = torch.Generator().manual_seed(5)
    head = (2 * torch.randn(VOCABULARY, 64, generator=generator)).bfloat16()
    hidden = [torch.randn(len(x), 64, generator=generator).bfloat16() for x in micro.input_ids]
    found = [kernel_logits(x, head, backend) for x in hidden]
    micro.log_pi = [x.log_softmax(-1) for x in found]
    micro.log_mu = [(x + 0.3 * torch.randn(x.shape, generator=generator)).log_softmax(-1) for x in found]
    labels = torch.cat(micro.input_ids).roll(-1).unsqueeze(-1)
    log_probs = torch.cat(micro.log_pi).gather(-1, labels).squeeze(-1)

    model = TinyModel(torch.cat(hidden).unsqueeze(0), head)
    engine = Engine(model)
    monkeypatch.setattr(fused, "rounds", lambda _: rounded_as == "torch")
    data = micro.data(use_remove_padding=True, use_fused_kernels=True)
    inputs, output_args = engine.prepare_model_inputs(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as verl's engine does it
        model.model(**inputs)
    output = SimpleNamespace(log_probs=log_probs.unsqueeze(0), entropy=None)
    divergence, _ = logits.divergence_of(engine.prepare_model_outputs(output, output_args, data, a_loss), data, "tv", K)
    if backend == rounded_as:
        assert_is_expected(divergence, micro)
    else:
        with pytest.raises(AssertionError):
            assert_is_expected(divergence, micro)


def test_verls_fused_forwards_are_told_apart():
    from verl.models.transformers import dense_common

    for name, expected in (("forward_with_torch_backend", True), ("forward_with_triton_backend", False)):
        model = type("Patched", (torch.nn.Module,), {"forward": getattr(dense_common, name)})()
        assert fused.rounds(model) is expected


def test_the_engine_is_registered_for_every_device():
    import verl.workers.engine_workers  # noqa: F401
    from verl.workers.engine import EngineRegistry

    engines = EngineRegistry._engines["language_model"]
    for backend in ("fsdp", "fsdp2"):
        assert engines[backend]["cuda"] is fused.TopKEngine
    assert issubclass(fused.TopKEngine, FSDPEngineWithLMHead)


# ---- rollout


def vllm_logprobs(rows: list[dict[int, float]], flat: bool):
    from vllm.logprobs import FlatLogprobs, Logprob

    positions = [{token: Logprob(value, rank + 1) for rank, (token, value) in enumerate(row.items())} for row in rows]
    if not flat:
        return positions
    container = FlatLogprobs()
    for position in positions:
        container.append(position)
    return container


@pytest.mark.parametrize("flat", [True, False])
def test_server_reads_k_or_k_plus_one_entries(flat: bool):
    from cppo_verl.integration.topk.recording import top_k_arrays

    rows = [{5: -0.1, 7: -2.5}, {9: -4.0, 5: -0.2, 7: -2.0}]  # sampled among the top 2; then outside
    arrays = top_k_arrays(vllm_logprobs(rows, flat), [5, 9], 2)
    assert arrays["ids"].tolist() == [[5, 7, 0], [9, 5, 7]] and arrays["ids"].dtype == np.int32
    expected = np.array([[-0.1, -2.5, -np.inf], [-4.0, -0.2, -2.0]], dtype=np.float32)
    assert np.array_equal(arrays["log_probs"], expected)
    with pytest.raises(ValueError, match="position 0 do not list the sampled token 6"):
        top_k_arrays(vllm_logprobs(rows, flat), [6, 9], 2)


def test_server_reads_vllms_flat_rows():
    """vLLM's own flat form: always K + 1 columns, the sampled token first and possibly again."""
    from vllm.logprobs import FlatLogprobs, append_logprobs_for_next_position

    from cppo_verl.integration.topk.recording import top_k_arrays

    container = FlatLogprobs()
    append_logprobs_for_next_position(container, [5, 5, 7], [-0.1, -0.1, -2.5], [None] * 3, 1, 2)
    append_logprobs_for_next_position(container, [9, 5, 7], [-4.0, -0.2, -2.0], [None] * 3, 8, 2)
    arrays = top_k_arrays(container, [5, 9], 2)
    assert arrays["ids"].tolist() == [[5, 5, 7], [9, 5, 7]]
    packed = pack(*map(torch.from_numpy, arrays.values()), torch.tensor([5, 9]), torch.tensor([-0.1, -4.0]))
    assert packed[2:4].tolist() == [1, 2]  # the sampled token counts once
    assert top_k_arrays(container, [5], 2)["ids"].tolist() == [[5, 5, 7]]  # an abort may leave a position behind
    with pytest.raises(ValueError, match="sampled token first"):
        top_k_arrays(container, [7, 9], 2)


class FakeVllm:
    """vLLM's client as far as the recorder uses it: an async stream of cumulative outputs."""

    def __init__(self):
        self.asked: list = []

    async def generate(self, *, sampling_params, request_id, **_):
        self.asked.append(sampling_params)
        rows = [{5: -0.1, 7: -2.5}, {9: -4.0, 5: -0.2, 7: -2.0}]
        for n in (1, 2):
            completion = SimpleNamespace(token_ids=[5, 9][:n], logprobs=vllm_logprobs(rows[:n], True))
            yield SimpleNamespace(request_id=request_id, outputs=[completion])


def test_recorder_asks_only_for_pending_requests():
    from vllm import SamplingParams

    from cppo_verl.integration.topk.recording import RecordingEngine

    async def last_of(engine, request_id: str):
        parameters = SamplingParams(logprobs=0, max_tokens=2)
        stream = engine.generate(prompt=None, sampling_params=parameters, request_id=request_id)
        return [output async for output in stream][-1].outputs[0]

    engine = RecordingEngine(FakeVllm())
    engine.pending["training"] = 2
    completion = asyncio.run(last_of(engine, "training"))
    assert engine.recorded["training"]["ids"].tolist() == [[5, 7, 0], [9, 5, 7]]
    # what verl's server does with the result
    read = [entry[completion.token_ids[i]].logprob for i, entry in enumerate(completion.logprobs)]
    assert read == pytest.approx([-0.1, -4.0])
    asyncio.run(last_of(engine, "validation"))
    assert list(engine.recorded) == ["training"]
    assert [(p.logprobs, p.flat_logprobs, p.detokenize) for p in engine.asked] == [(2, True, False), (0, False, True)]


def part(start: int, tokens: list[int], offset: int = 0) -> Part:
    """Top-2 whose ids say which token they belong to: 100 * token + column."""
    ids = np.array([[t, 100 * t, 100 * t + 1] for t in tokens], dtype=np.int32)
    values = np.array([[-1.0 - offset, -2.0, -3.0]] * len(tokens), dtype=np.float32)
    return Part(start, tokens, ids, values)


def test_parts_of_a_resumed_response_stay_aligned():
    """Generated in three pieces, the second aborted at once: each call's prompt tells where it starts."""
    parts = [part(2, [3, 4]), part(4, [5]), part(5, [6, 7])]
    ids, log_probs = lay_out(parts, prompt_ids=[1, 2], response_ids=[3, 4, 5, 6, 7])
    assert ids[:, 1].tolist() == [300, 400, 500, 600, 700]
    assert (log_probs > -torch.inf).all()


def test_tool_output_has_no_entries_and_truncation_cuts():
    parts = [part(1, [3, 4]), part(5, [7, 8, 9])]
    ids, log_probs = lay_out(parts, prompt_ids=[1], response_ids=[3, 4, 5, 6, 7, 8])
    assert ids[:, 1].tolist() == [300, 400, 0, 0, 700, 800]
    assert (log_probs[2:4] == -torch.inf).all() and (log_probs[[0, 1, 4, 5]] > -torch.inf).all()


def test_a_part_of_another_branch_is_left_out():
    ids, _ = lay_out([part(1, [3, 4, 9])], prompt_ids=[1], response_ids=[3, 4, 5])
    assert ids[:, 1].tolist() == [300, 400, 0]
    ids, _ = lay_out([part(1, [3])], prompt_ids=[1, 3], response_ids=[5])
    assert ids.tolist() == [[0, 0, 0]]
    ids, log_probs = lay_out([], prompt_ids=[1], response_ids=[5, 6])
    assert ids.shape == (2, 1) and (log_probs == -torch.inf).all()


def test_the_fields_of_an_output_gain_one():
    output = AgentLoopOutput(
        prompt_ids=[1],
        response_ids=[2, 3],
        response_mask=[1, 1],
        response_logprobs=[-0.1, -0.2],
        metrics=AgentLoopMetrics(),
        extra_fields={"min_global_steps": 3},
    )
    with_topk = carrying(output, torch.arange(5))
    with_topk.reward_score = 1.0
    output.reward_score = 1.0
    before, after = output.as_dict(), with_topk.as_dict()
    assert torch.equal(after.pop(FIELD), torch.arange(5))
    assert before.keys() == after.keys()
    assert torch.equal(after["rm_scores"], torch.tensor([0.0, 1.0]))
    assert after["extra_fields"] == {"min_global_steps": 3}


class FakeServer:
    """A rollout server that is aborted after two tokens, then goes on; tokens count up from the prompt's length."""

    def __init__(self):
        self.requests: list = []
        self.generate = SimpleNamespace(remote=self._generate)

    async def _generate(self, *, prompt_ids, sampling_params, **_):
        self.requests.append(sampling_params)
        n = 2 if len(self.requests) == 1 else 3
        tokens = list(range(len(prompt_ids), len(prompt_ids) + n))
        made = part(len(prompt_ids), tokens)
        return TokenOutput(
            token_ids=tokens,
            log_probs=[-1.0] * n,
            stop_reason="aborted" if n == 2 else "completed",
            extra_fields={"global_steps": 1, "topk": {"ids": made.ids, "log_probs": made.log_probs}},
        )


@pytest.mark.parametrize("client_class", [LLMServerClient, FullyAsyncLLMServerClient])
def test_the_client_collects_every_call(client_class: type, monkeypatch: pytest.MonkeyPatch):
    """verl's plain client, and the one that resumes aborted calls by itself."""
    from cppo_verl.integration.topk import agent_loop

    client = client_class(
        config=SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(name="vllm")))
    )
    client.__class__ = collecting(client_class)
    server = FakeServer()

    async def acquire(request_id, **_):
        return "server", server

    client._acquire_server = acquire
    client._release_server = lambda *_, **__: None

    async def trajectory():
        agent_loop._parts.set([])
        output = await client.generate("r", prompt_ids=[0, 1, 2], sampling_params={"logprobs": 2})
        return output, agent_loop._parts.get()

    output, parts = asyncio.run(trajectory())
    assert "topk" not in output.extra_fields
    ids, log_probs = lay_out(parts, [0, 1, 2], output.token_ids)
    assert len(output.token_ids) == (2 if client_class is LLMServerClient else 5)
    assert ids[:, 1].tolist() == [100 * token for token in output.token_ids]
    assert (log_probs > -torch.inf).all()


# ---- configuration


def problems(*overrides: str, preset: str = "cppo_topk") -> str:
    return "\n".join(checks.run_problems(presets.compose(preset, ["actor_rollout_ref.rollout.n=4", *overrides])))


@pytest.mark.parametrize("preset", ["cppo_topk", "dppo_topk"])
def test_presets_start(preset: str):
    assert problems(preset=preset) == ""
    config = presets.compose(preset)
    assert config.actor_rollout_ref.actor.policy_loss.estimator == "topk"
    assert config.actor_rollout_ref.actor.policy_loss.topk == 20


def test_any_rule_takes_the_estimator():
    for preset in ("cppo_kl", "trm_max", "cppo_soft", "dppo_tv"):
        assert problems("actor_rollout_ref.actor.policy_loss.estimator=topk", preset=preset) == ""


FUSED_BY_LIGER = ("use_fused_kernels=true", "fused_kernel_options.impl_backend=liger")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+actor_rollout_ref.rollout.engine_kwargs.vllm.max_logprobs=5", ["max_logprobs=5", "policy_loss.topk=20"]),
        ("actor_rollout_ref.rollout.logprobs_mode=raw_logprobs", ["logprobs_mode=raw_logprobs", "processed_logprobs"]),
        ("actor_rollout_ref.rollout.name=sglang", ["rollout.name=sglang", "vllm"]),
        ("actor_rollout_ref.actor.strategy=megatron", ["strategy=megatron", "fsdp"]),
        ("trainer.v1.trainer_mode=sync", ["trainer_mode=sync", "set it to trust_region"]),
        ("trainer.v1.trust_region.topk_cutoff=1.5", ["topk_cutoff=1.5", "[0, 1)"]),
        ("++actor_rollout_ref.rollout.agent.agent_loop_manager_class=my.Loop", ["my.Loop", "agent_loop_manager_class"]),
        ("actor_rollout_ref.actor.pad_to_length=true", ["fsdp_config.pad_to_length=True", "set it to False"]),
        (
            [f"actor_rollout_ref.model.{key}" for key in FUSED_BY_LIGER],
            ["fused_kernel_options.impl_backend=liger", "torch or triton"],
        ),
    ],
)
def test_what_cannot_work_is_refused(override: str | list[str], said: list[str]):
    text = problems(*([override] if isinstance(override, str) else override))
    assert all(words in text for words in said), text


def test_install_raises_vllms_limit_with_k():
    config = presets.compose("cppo_topk", ["actor_rollout_ref.actor.policy_loss.topk=50"])
    from verl.workers.rollout import replica

    before = dict(replica.RolloutReplicaRegistry._registry)
    try:
        topk.install(config)
        assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.max_logprobs == 50
        assert config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == topk.MANAGER
        assert replica.RolloutReplicaRegistry._registry["vllm"] is topk._load_replica
    finally:
        replica.RolloutReplicaRegistry._registry = before


def test_transport_is_below_130_bytes_a_token():
    micro = Micro(lengths=((3, 500),), k=20)
    bytes_a_token = micro.packed(0).numel() * 2 / 500
    assert 110 < bytes_a_token <= 124.1
    assert math.isclose((6 * 20 + 4) + 4 / 500, 124.008)


def test_no_padding_helper_is_verls():
    """The shift that the index undoes is verl's: the value before a token belongs to it."""
    micro = Micro()
    data = micro.data()
    positions = jagged([torch.arange(len(x)) for x in micro.input_ids])
    shown = no_padding_2_padding(positions, data)
    assert [shown[row, 0].item() for row in range(3)] == [prompt - 1 for prompt, _ in micro.lengths]
