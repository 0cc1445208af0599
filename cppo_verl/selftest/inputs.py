"""Random inputs, the same on every machine: responses for the rules, and a packed micro-batch for verl's engine."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cppo_verl.trust_region import topk
from cppo_verl.trust_region.tokens import Tokens

K = 20
LENGTHS = ((3, 1.0), (1, 0.52), (7, 0.02), (2, 0.98))  # prompt tokens, and the response's share of the longest
Sequence = tuple[int, Tensor, Tensor, Tensor]  # prompt tokens, ids, pi's logits, mu's log-probs of the response


def responses(rows: int, width: int, seed: int = 0) -> Tokens:
    """(rows, width) float64 on the CPU. Half of the tokens are confident (p near 1); pi's drift from mu differs by row,
    0.003 to 1 in the log-ratio; one advantage a response, every tenth 0. Padding on either side, holes in every second
    row; one row full, one empty, one of a single token."""
    given: dict[str, Any] = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(seed)}
    uniform, normal = torch.rand(4, rows, width, **given), torch.randn(2, rows, width, **given)
    confident, unsure = -(10.0 ** (4 * uniform[0] - 5)), 1.5 * torch.log1p(-uniform[1]) - 1e-4
    old_log_prob = torch.where(uniform[2] < 0.5, confident, unsure)
    drift = 10.0 ** (2.5 * torch.rand(rows, 1, **given) - 2.5)
    log_prob = (old_log_prob * (drift * normal[0]).exp() + drift * normal[1]).clamp_max(-1e-7)
    advantages = torch.randn(rows, 1, **given)
    advantages[::10] = 0
    start, end = (torch.rand(2, rows, 1, **given) * (width + 1)).long().sort(0).values
    column = torch.arange(width)
    mask = (column >= start // 4) & (column < (end + width) // 2)
    mask[::2] &= uniform[3, ::2] > 0.2
    mask[:3] = torch.stack([torch.ones_like(column), torch.zeros_like(column), column == width // 2])
    return Tokens.of(log_prob, old_log_prob, advantages.expand(rows, width), mask)


def moved(batch: Tokens, device: torch.device | str, dtype: torch.dtype) -> Tokens:
    """The same on a device, floating tensors in ``dtype``."""
    pi, mu, advantages = (x.to(device, dtype) for x in (batch.log_prob, batch.old_log_prob, batch.advantages))
    return Tokens(pi, mu, advantages, batch.mask.to(device))


def micro_batch(vocabulary: int, longest: int, dtype: torch.dtype, temperature: float) -> list[Sequence]:
    """Whole sequences on the CPU: ids (tokens,), logits (tokens, vocabulary), log mu (response, vocabulary) float32."""
    random = torch.Generator().manual_seed(0)
    sequences = []
    for prompt, share in LENGTHS:
        mu = 4 * torch.randn(prompt + max(int(share * longest), 1), vocabulary, generator=random)
        pi = (mu + 0.3 * torch.randn(mu.shape, generator=random)).to(dtype)
        log_mu = (mu[prompt - 1 : -1] / temperature).log_softmax(-1)
        sampled = torch.multinomial(log_mu.exp(), 1, generator=random).squeeze(-1)
        ids = torch.cat([torch.randint(0, vocabulary, (prompt,), generator=random), sampled])
        sequences.append((prompt, ids, pi, log_mu))
    return sequences


def exact_divergence(sequence: Sequence, temperature: float, kind: str) -> Tensor:
    """Its top-K D_t in float64 from the whole vocabulary's log-probs, (response,)."""
    prompt, ids, pi, log_mu = sequence
    exact_mu, exact_pi = log_mu.double(), (pi[prompt - 1 : -1].double() / temperature).log_softmax(-1)
    top, sampled = exact_mu.topk(K), ids[prompt:].unsqueeze(-1)
    own_pi, own_mu = (x.gather(-1, sampled).squeeze(-1) for x in (exact_pi, exact_mu))
    listed = topk.without_sampled(top.values, top.indices, sampled.squeeze(-1))
    return topk.TOPK[kind](exact_pi.gather(-1, top.indices), listed, own_pi, own_mu)


def packed(micro: list[Sequence], device: str, temperature: float) -> Any:
    """verl's TensorDict of the sequences, as the actor's engine gets it."""
    from verl.utils import tensordict_utils

    from cppo_verl.integration.topk import FIELD

    rows = []
    for prompt, ids, _, log_mu in micro:
        response, top = ids[prompt:], log_mu.topk(K)
        own, whole = log_mu.gather(-1, response.unsqueeze(-1)).squeeze(-1), torch.ones_like(response)
        row = {"input_ids": ids, "position_ids": torch.arange(len(ids)), "prompts": ids[:prompt], "responses": response}
        row |= {"response_mask": whole, "loss_mask": whole, "old_log_probs": own}
        rows.append(row | {FIELD: topk.pack(top.indices, top.values, response, own)})
    nested: dict[str, Any] = {
        name: torch.nested.as_nested_tensor([row[name].to(device) for row in rows], layout=torch.jagged)
        for name in rows[0]
    }
    flags = {"temperature": temperature, "distillation_use_topk": True, "use_remove_padding": True, "topk": K}
    return tensordict_utils.get_tensordict(nested, flags)


def engine_output(logits: Tensor, data: Any) -> Any:
    """What verl's FSDP engine puts out when the model's raw logits, (tokens, vocabulary) with a gradient, are these."""
    from cppo_verl.integration.losses import trust_region_loss
    from cppo_verl.integration.topk.fused import TopKEngine

    class Bare(TopKEngine):
        """Only what preparing inputs and outputs reads: no model, no process group, no optimizer."""

        def __init__(self):
            self.module: Any = None
            self.pad_to_length: Any = None
            self.use_ulysses_sp, self.ulysses_sequence_parallel_size = False, 1

        def _get_packed_pad_size(self, _: int) -> int:
            return 0

    def processor(student_logits: Tensor, data: Any):
        config: Any = SimpleNamespace(policy_loss=SimpleNamespace(topk=K))
        return trust_region_loss(config=config, student_logits=student_logits, data=data)

    engine = Bare()
    _, output_args = engine.prepare_model_inputs(data)
    return engine.prepare_model_outputs(SimpleNamespace(logits=logits.unsqueeze(0)), output_args, data, processor)
