"""From the training forward to D_t: the logits of mu's top-K, gathered where verl's engine shows its logits.

The engine calls the loss function with the logits, already divided by the temperature, before it computes the sampled
token's log-prob. All that is taken there is K + 1 logits a token; the loss then gets log pi of all of them from the
sampled token's log-prob. No pass over the vocabulary, nothing of the vocabulary's width is allocated, no gradient.
"""

import os
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils
from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size, slice_input_tensor
from verl.workers.utils.padding import no_padding_2_padding

from cppo_verl.integration.topk import FIELD
from cppo_verl.trust_region.topk import TOPK, log_probs_at, rest_mass, unpack

PROXIMAL = "proximal_topk"  # nested (batch, tokens, k) float32: the proximal policy's log-probs at mu's top-K
CHOSEN = "topk_logit_"  # + column: logits of mu's top-K, then of the sampled token
NORMALISER = "topk_log_normaliser"
ROWS = 256  # tokens at a time where the normaliser must be summed: 256 x 151,936 float32 are 156 MB


def top_k_of(data: TensorDict, k: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids, log-probs and rest mass of each response in a micro-batch, by ``cppo_verl.trust_region.topk.unpack``.

    A row added to make the batch divisible has one token; its copy of another response's top-K is cut to that.

    Raises:
        ValueError: when a top-K is not as long as its response.
    """
    found = []
    rows = zip(data[FIELD].unbind(), data["responses"].unbind(), data["response_mask"].unbind(), strict=True)
    for row, (packed, response, mask) in enumerate(rows):
        ids, log_mu, rest = unpack(packed, k)
        if len(ids) != len(response):
            if bool(mask.any()):
                raise ValueError(f"row {row} has {len(response)} response tokens but top-K log-probs for {len(ids)}")
            ids, log_mu, rest = ids[:1], log_mu[:1], rest[:1]
        found.append((ids, log_mu, rest))
    return found


def token_index(data: TensorDict, k: int) -> Tensor:
    """Vocabulary indices to look at, (tokens, k + 1) int64: row i holds the top-K and the sampled token of token i + 1.

    That is the row of the logits that predicts them. Prompt rows hold index 0 and their own next token.
    """
    input_ids = data["input_ids"]
    index = input_ids.values().new_zeros((input_ids.values().shape[0], k + 1), dtype=torch.long)
    index[:, k] = torch.roll(input_ids.values(), shifts=-1, dims=0)
    for end, (ids, _, _) in zip(input_ids.offsets()[1:].tolist(), top_k_of(data, k), strict=True):
        index[end - 1 - len(ids) : end - 1, :k] = ids
    return index


def local_index(data: TensorDict, k: int, tokens: int) -> Tensor:
    """``token_index`` of this rank's part of the sequence under Ulysses sequence parallelism, (tokens, k + 1)."""
    index = token_index(data, k)
    if get_ulysses_sequence_parallel_world_size() > 1:
        index = slice_input_tensor(index, dim=0)
    if len(index) != tokens:
        raise ValueError(f"the engine shows logits of {tokens} tokens, the batch has {len(index)} on this rank")
    return index


@torch.no_grad()
def gather_logits(student_logits: Tensor, data: TensorDict, k: int) -> dict[str, Tensor]:
    """What the engine asks of a logits processor: named (1, tokens) tensors.

    Args:
        student_logits: (1, tokens, vocabulary) any floating dtype, temperature applied; the name is verl's.
    """
    logits = student_logits.detach().squeeze(0)
    outputs = named(logits.gather(-1, local_index(data, k, logits.shape[0])).float())
    if not sampled_log_prob_is_exact(logits.dtype):
        parts = [part.float().logsumexp(-1) for part in logits.split(ROWS)]
        outputs[NORMALISER] = torch.cat(parts).unsqueeze(0)
    return outputs


def named(chosen: Tensor) -> dict[str, Tensor]:
    """(tokens, k + 1) as the (1, tokens) tensors that travel in the model's output."""
    return {f"{CHOSEN}{column}": values.unsqueeze(0) for column, values in enumerate(chosen.t().contiguous())}


def sampled_log_prob_is_exact(dtype: torch.dtype) -> bool:
    """Whether verl's log-prob from logits of ``dtype`` is good to float32, so that the normaliser follows from it.

    It is for float32 logits and with flash-attention's cross-entropy. Without that, half-precision logits give
    half-precision log-probs, and the normaliser is summed here, some rows at a time.
    """
    from verl.utils import torch_functional

    flash = torch_functional.FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE
    return dtype in (torch.float32, torch.float64) or (flash and os.environ.get("VERL_DISABLE_FLASH_ATTN_CE") != "1")


@torch.no_grad()
def log_probs_of(model_output: dict[str, Tensor], k: int) -> Tensor:
    """log pi of the listed tokens, (tokens, k) float32, from the logits that the engine gathered."""
    columns = [model_output[f"{CHOSEN}{column}"].values() for column in range(k + 1)]
    chosen = torch.stack(columns[:k], -1)
    if NORMALISER in model_output:
        return chosen - model_output[NORMALISER].values().unsqueeze(-1)
    return log_probs_at(chosen, columns[k], model_output["log_probs"].values().float())


@torch.no_grad()
def divergence_of(model_output: dict[str, Tensor], data: TensorDict, kind: str, k: int) -> tuple[Tensor, Tensor]:
    """D_t of the micro-batch, and mu's mass on the categories other than the rest; both (batch, length) float32.

    Args:
        kind: ``tv`` or ``kl``.
    """
    log_pi = no_padding_2_padding(log_probs_of(model_output, k), data)
    log_prob = no_padding_2_padding(model_output["log_probs"].detach(), data).float()
    old_log_prob = data["old_log_probs"].to_padded_tensor(0.0).to(log_prob.dtype)
    log_mu = log_pi.new_full(log_pi.shape, -torch.inf)
    rest = torch.zeros_like(log_prob)
    for row, (_, values, mass) in enumerate(top_k_of(data, k)):
        log_mu[row, : len(values)] = values
        rest[row, : len(mass)] = mass
    if PROXIMAL in data.keys():  # noqa: SIM118 - a TensorDict; the same partition of the vocabulary, another anchor
        anchor = no_padding_2_padding(data[PROXIMAL].values(), data)
        log_mu = torch.where(log_mu > -torch.inf, anchor, -torch.inf)
        rest = rest_mass(log_mu, old_log_prob)
    return TOPK[kind](log_pi, log_mu, log_prob, old_log_prob, rest), 1 - rest


def flag(data: TensorDict, key: str, default: Any) -> Any:
    """One of verl's switches that travel with a micro-batch."""
    return tensordict_utils.get_non_tensor_data(data=data, key=key, default=default)


def asked(data: TensorDict) -> bool:
    """Whether ``topk.ask`` was called for this micro-batch and it brings a top-K."""
    return bool(flag(data, "distillation_use_topk", False)) and FIELD in data.keys()  # noqa: SIM118
