"""A micro-batch as verl's engines get it, with the policies behind it and D_t by definition."""

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig

from cppo_verl.integration.topk import FIELD
from cppo_verl.trust_region.topk import pack, tv_coding_bound
from tests import helpers

K, VOCABULARY, TEMPERATURE = 4, 30, 0.7


def jagged(parts: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


def actor_config(**knobs) -> ActorConfig:
    return helpers.actor_config(**{"estimator": "topk", "topk": K, **knobs})


class Micro:
    """Random policies mu and pi over sequences of given (prompt, response) lengths."""

    def __init__(self, seed: int = 0, lengths=((3, 5), (2, 1), (4, 7)), drift: float = 0.5, k: int = K):
        self.k, self.lengths = k, lengths
        generator = torch.Generator().manual_seed(seed)
        sizes = [prompt + response for prompt, response in lengths]
        self.input_ids = [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in sizes]
        # logits at every position, before the temperature; those at position i predict token i + 1
        mu_logits = [2 * torch.randn(n, VOCABULARY, generator=generator) for n in sizes]
        self.pi_logits = [x + drift * torch.randn(x.shape, generator=generator) for x in mu_logits]
        self.log_mu = [(x / TEMPERATURE).log_softmax(-1) for x in mu_logits]
        self.log_pi = [(x / TEMPERATURE).log_softmax(-1) for x in self.pi_logits]

    def of_rows(self, rows: list[int]) -> "Micro":
        """The same policies on some of the sequences."""
        mine = Micro(lengths=(), k=self.k)
        mine.lengths = tuple(self.lengths[row] for row in rows)
        for name in ("input_ids", "pi_logits", "log_mu", "log_pi"):
            setattr(mine, name, [getattr(self, name)[row] for row in rows])
        return mine

    def response(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """log mu and log pi at the positions that predict the response's tokens, and those tokens."""
        prompt, response = self.lengths[row]
        where = slice(prompt - 1, prompt + response - 1)
        return self.log_mu[row][where], self.log_pi[row][where], self.input_ids[row][prompt:]

    def responses(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [self.response(row) for row in range(len(self.lengths))]

    def listed(self) -> list[Tensor]:
        """mu's top-K of each response, (tokens, K)."""
        return [log_mu.topk(self.k).indices for log_mu, _, _ in self.responses()]

    def sampled(self) -> list[Tensor]:
        """log mu of each response's tokens."""
        return [log_mu.gather(-1, y.unsqueeze(-1)).squeeze(-1) for log_mu, _, y in self.responses()]

    def packed(self, row: int) -> Tensor:
        (log_mu, _, tokens), ids = self.response(row), self.listed()[row]
        return pack(ids, log_mu.gather(-1, ids), tokens, self.sampled()[row])

    def data(self, **flags) -> TensorDict:
        rows = range(len(self.lengths))
        masks = [torch.ones(response, dtype=torch.long) for _, response in self.lengths]
        tensors = {
            "input_ids": jagged(self.input_ids),
            "position_ids": jagged([torch.arange(len(x)) for x in self.input_ids]),
            "prompts": jagged([x[:p] for x, (p, _) in zip(self.input_ids, self.lengths, strict=True)]),
            "responses": jagged([y for _, _, y in self.responses()]),
            "response_mask": jagged(masks),
            "loss_mask": jagged(masks),
            "old_log_probs": jagged(self.sampled()),
            "advantages": jagged([torch.full((r,), 1.0 - 2 * (i % 2)) for i, (_, r) in enumerate(self.lengths)]),
            FIELD: jagged([self.packed(row) for row in rows]),
        }
        extra = {"temperature": TEMPERATURE, "distillation_use_topk": True, "topk": self.k, "dp_size": 1}
        extra |= {"batch_num_tokens": sum(r for _, r in self.lengths), "global_batch_size": len(self.lengths)}
        return tensordict_utils.get_tensordict(tensors, extra | flags)

    def expected(self, kind: str = "tv", listed: list[Tensor] | None = None) -> list[Tensor]:
        """D_t of each response from the definition, float64; on the given tokens instead of mu's top-K."""
        result = []
        for ids, (log_mu, log_pi, tokens) in zip(listed or self.listed(), self.responses(), strict=True):
            values = []
            for at, y in enumerate(tokens.tolist()):
                p, q = (categories(x[at].double().exp(), {*ids[at].tolist(), y}) for x in (log_mu, log_pi))
                values.append(0.5 * (q - p).abs().sum() if kind == "tv" else (p * (p / q).log()).sum())
            result.append(torch.stack(values))
        return result


def categories(probabilities: Tensor, tokens: set[int]) -> Tensor:
    """The probabilities of some tokens, and of all others together."""
    chosen = probabilities[sorted(tokens)]
    return torch.cat([chosen, (1 - chosen.sum()).view(1)])


def assert_is_expected(divergence: Tensor, micro: Micro, kind: str = "tv", listed: list[Tensor] | None = None) -> None:
    for row, expected in enumerate(micro.expected(kind, listed)):
        got = divergence[row, : len(expected)].double()
        if kind == "tv":
            assert (got - expected).abs().max() <= tv_coding_bound(micro.k) + 1e-6
        else:
            torch.testing.assert_close(got, expected, rtol=1e-2, atol=2e-5)
