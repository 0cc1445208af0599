"""Stage ``losses``: inside verl, on the device: gradients of the registered losses, and the top-K from logits to D_t.

Against float64 on the CPU from the same inputs. The top-K goes the way of a run: a packed micro-batch, verl's engine
between logits and log-probs (flash-attention's cross-entropy where it is installed), our gather, mu's coded top-K.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cppo_verl.selftest.batches import Batch, binary_batch
from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import Row, at_most
from cppo_verl.trust_region.topk import pack, tv_coding_bound

K = 20
GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8}  # largest relative error of a token's gradient
NEAR = 1e-4  # share of tokens whose decision may fall to the other side by rounding
OURS_ONLY = torch.bfloat16  # verl's own losses compute in the dtype that they get
# limits of |D_t - float64|: coding of mu's top-K, and the rounding of verl's log-prob from half-precision logits
EXACT, ROUNDED = tv_coding_bound(K) + 2e-6, 1e-2


def measure(setting: Setting) -> Iterator[Row]:
    """The stage's rows."""
    from cppo_verl.selftest.loss_speed import registered_losses

    device = torch.device(setting.device)
    batch = binary_batch(24, 512) if setting.on_cpu else binary_batch(64, 2048)
    for dtype in GRADIENT:
        losses = {
            name: loss for name, loss in registered_losses().items() if dtype != OURS_ONLY or "(verl)" not in name
        }
        yield from gradient_rows(losses, batch.to(device, dtype))
    vocabulary, tokens = (4096, 48) if setting.on_cpu else (151_936, 256)
    for dtype, temperature in ((torch.float32, 0.7), (torch.bfloat16, 1.0)):
        yield from gather_rows(Micro.make(vocabulary, tokens, dtype, temperature, device))
        yield head_row(vocabulary, tokens, dtype, device)


# ---- losses


def gradient_rows(losses: Mapping[str, Callable], batch: Batch) -> Iterator[Row]:
    """d loss / d log pi of every token, on the device in the batch's dtype and on the CPU in float64."""
    dtype, exact_batch = batch.log_prob.dtype, batch.to("cpu", torch.float64)
    errors, elsewhere = {}, {}
    for name, loss in losses.items():
        here, exact = gradient(loss, batch), gradient(loss, exact_batch)
        both = (here != 0) & (exact != 0)
        error = ((here - exact).abs() / exact.abs())[both].max() if both.any() else torch.tensor(torch.nan)
        errors[name] = float(error.nan_to_num(nan=torch.inf))
        elsewhere[name] = float(((here != 0) ^ (exact != 0))[batch.mask.cpu()].double().mean())
    said = f"gradients of {len(losses)} losses, {_short(dtype)}"
    yield at_most(f"{said}: largest relative error", max(errors.values()), GRADIENT[dtype], note=_worst(errors))
    yield at_most(f"{said}: share decided otherwise", max(elsewhere.values()), NEAR, note=_worst(elsewhere))


def _worst(values: Mapping[str, float]) -> str:
    return "the largest: " + max(values, key=values.__getitem__) if any(values.values()) else ""


def gradient(loss: Callable, batch: Batch) -> Tensor:
    """As float64 on the CPU."""
    leaf = batch.log_prob.detach().clone().requires_grad_()
    loss(leaf, batch.old_log_prob, batch.advantages, batch.mask)[0].backward()
    assert leaf.grad is not None
    return leaf.grad.double().cpu()


# ---- top-K


@dataclass(frozen=True)
class Micro:
    """A packed micro-batch: ids of whole sequences, pi's logits at every position, mu's log-probs of the responses.

    Attributes:
        lengths: (prompt, response) tokens of each sequence.
        input_ids, logits: lists over sequences, (tokens,) and (tokens, vocabulary), on the device.
        log_mu: (response, vocabulary) float32 on the CPU, at the temperature.
    """

    lengths: list[tuple[int, int]]
    input_ids: list[Tensor]
    logits: list[Tensor]
    log_mu: list[Tensor]
    temperature: float

    @classmethod
    def make(
        cls, vocabulary: int, tokens: int, dtype: torch.dtype, temperature: float, device: torch.device
    ) -> "Micro":
        random = torch.Generator().manual_seed(0)
        lengths = [(3, tokens), (1, tokens // 2 + 1), (7, 1), (2, tokens - 1)]
        input_ids, logits, log_mu = [], [], []
        for prompt, response in lengths:
            mu = 4 * torch.randn(prompt + response, vocabulary, generator=random)
            pi = (mu + 0.3 * torch.randn(mu.shape, generator=random)).to(dtype)
            laws = (mu[prompt - 1 : -1] / temperature).log_softmax(-1)
            prompts = torch.randint(0, vocabulary, (prompt,), generator=random)
            sampled = torch.multinomial(laws.exp(), 1, generator=random).squeeze(-1)
            input_ids.append(torch.cat([prompts, sampled]).to(device))
            logits.append(pi.to(device))
            log_mu.append(laws)
        return cls(lengths, input_ids, logits, log_mu, temperature)

    def data(self) -> Any:
        """verl's TensorDict of it, as the actor's engine gets it."""
        from verl.utils import tensordict_utils

        from cppo_verl.integration.topk import FIELD

        device, parts = self.input_ids[0].device, list(zip(self.input_ids, self.lengths, strict=True))
        responses = [ids[prompt:] for ids, (prompt, _) in parts]
        masks = [torch.ones_like(y) for y in responses]
        packed, sampled = [], []
        for laws, y in zip(self.log_mu, responses, strict=True):
            top, own = laws.topk(K), laws.gather(-1, y.cpu().unsqueeze(-1)).squeeze(-1)
            packed.append(pack(top.indices, top.values, y.cpu(), own).to(device))
            sampled.append(own.to(device))
        tensors = {
            "input_ids": self.input_ids,
            "position_ids": [torch.arange(len(ids), device=device) for ids in self.input_ids],
            "prompts": [ids[:prompt] for ids, (prompt, _) in parts],
            "responses": responses,
            "response_mask": masks,
            "loss_mask": masks,
            "old_log_probs": sampled,
            FIELD: packed,
        }
        nested: dict[str, Any] = {
            name: torch.nested.as_nested_tensor(x, layout=torch.jagged) for name, x in tensors.items()
        }
        flags = {"temperature": self.temperature, "distillation_use_topk": True, "topk": K, "use_remove_padding": True}
        return tensordict_utils.get_tensordict(nested, flags)

    def expected(self, row: int, kind: str) -> Tensor:
        """D_t by definition in float64, (response,)."""
        prompt, _ = self.lengths[row]
        p = self.log_mu[row].double().exp()
        q = (self.logits[row][prompt - 1 : -1].cpu().double() / self.temperature).softmax(-1)
        y = self.input_ids[row][prompt:].cpu().unsqueeze(-1)
        listed = p.topk(K).indices
        apart = (listed != y).double()
        p_c, q_c = (torch.cat([x.gather(-1, listed) * apart, x.gather(-1, y)], -1) for x in (p, q))
        p_c, q_c = (torch.cat([x, (1 - x.sum(-1, keepdim=True)).clamp_min(0)], -1) for x in (p_c, q_c))
        if kind == "tv":
            return 0.5 * (q_c - p_c).abs().sum(-1)
        return torch.where(p_c > 0, p_c * (p_c.clamp_min(1e-300) / q_c.clamp_min(1e-300)).log(), 0.0).sum(-1)


def gather_rows(micro: Micro) -> Iterator[Row]:
    """From pi's logits through verl's engine to the loss's D_t."""
    from cppo_verl.integration.topk import logits

    dtype, data = micro.logits[0].dtype, micro.data()
    output = engine_output(micro, data)
    limit = EXACT if logits.sampled_log_prob_is_exact(dtype) else ROUNDED
    for kind in ("tv", "kl"):
        found, _ = logits.divergence_of(output, data, kind, K)
        errors = [
            (found[row, :length].double().cpu() - micro.expected(row, kind)).abs().max()
            for row, (_, length) in enumerate(micro.lengths)
        ]
        yield at_most(f"top-K {kind.upper()} from {_short(dtype)} logits: largest error", float(max(errors)), limit)


def engine_output(micro: Micro, data: Any) -> Any:
    """What verl's FSDP engine puts out when the model's raw logits are the micro-batch's."""
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
    raw = torch.cat(micro.logits).unsqueeze(0).clone().requires_grad_()
    return engine.prepare_model_outputs(SimpleNamespace(logits=raw), output_args, data, processor)


def head_row(vocabulary: int, tokens: int, dtype: torch.dtype, device: torch.device) -> Row:
    """The same logits where fused kernels make none: rows of the LM head."""
    from cppo_verl.integration.topk.fused import logits_at

    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, 256, generator=random).to(dtype)
    head = (torch.randn(vocabulary, 256, generator=random) / 16).to(dtype)
    index = torch.randint(0, vocabulary, (tokens, K + 1), generator=random)
    found = logits_at(hidden.to(device), head.to(device), index.to(device), 0.7).double().cpu()
    exact = (head.double()[index] @ hidden.double().unsqueeze(-1)).squeeze(-1) / 0.7
    error = float((found - exact).abs().max() / exact.abs().max())
    limit = 1e-5 if dtype == torch.float32 else 2.0**-7
    return at_most(f"logits at rows of the LM head, {_short(dtype)}: relative error", error, limit)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
