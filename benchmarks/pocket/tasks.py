"""Two seeded verifiable tasks in which an early token decides what follows, with responses of one fixed length.

``Trace``: run a register machine step by step; only the last result is rewarded, so that one wrong step spoils all
later ones. ``Branch``: a tree small enough that J and every divergence are sums over all sequences.
"""

import torch
from torch import Tensor

from benchmarks.pocket.model import Transformer, response_log_law


class Trace:
    """Two registers modulo ``base``; the prompt is (a, b, operations), the response (operation, a, b, ;) a step.

    Operations: 0 a += b, 1 b += a, 2 swap, 3 a = 2a + 1. Reward 1 for the right final a, else 0. Demonstrations have
    ``errors`` random slips a response on average, each carried on from.
    """

    def __init__(self, operations: int, base: int = 7, errors: float = 1.5, seed: int = 0):
        self.operations, self.base, self.errors = operations, base, errors
        self.vocabulary, self.prompt_length, self.length = base + 5, operations + 2, 4 * operations

    def prompts(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, prompt_length) int64."""
        registers = torch.randint(self.base, (count, 2), generator=generator)
        program = torch.randint(4, (count, self.operations), generator=generator) + self.base
        return torch.cat([registers, program], 1)

    def trace(self, prompts: Tensor, slips: Tensor | None = None) -> Tensor:
        """The response (count, length); ``slips``, (count, operations), are added to each step's changed register."""
        a, b = prompts[:, 0], prompts[:, 1]
        separator, columns = torch.full_like(a, self.base + 4), []
        for i, code in enumerate(prompts[:, 2:].unbind(1)):
            slip = 0 if slips is None else slips[:, i]
            kind = code - self.base
            new_a = torch.where(kind == 0, a + b + slip, torch.where(kind == 3, 2 * a + 1 + slip, a))
            new_b = torch.where(kind == 1, a + b + slip, torch.where(kind == 2, a + slip, b))
            a, b = torch.where(kind == 2, b, new_a) % self.base, new_b % self.base
            columns += [code, a, b, separator]
        return torch.stack(columns, 1)

    def reward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """(count,) 0 or 1."""
        return (self.trace(prompts)[:, -3] == tokens[:, -3]).float()

    def demonstrations(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        prompts, shape = self.prompts(count, generator), (count, self.operations)
        wrong = torch.rand(shape, generator=generator) < self.errors / self.operations
        return prompts, self.trace(prompts, wrong * torch.randint(1, self.base, shape, generator=generator))


class Branch:
    """``contexts`` prompts of one token; the first response token picks a branch, the rest must follow its path.

    R = value of the branch times the share of later tokens before the first wrong one, in [0, 1]. What is right at a
    step depends on context, branch, step and the token before; values and paths are drawn from the seed. Demonstrations
    are uniformly random over the branch symbols.
    """

    def __init__(self, length: int = 8, branches: int = 3, contexts: int = 4, seed: int = 0):
        self.length, self.branches, self.contexts = length, branches, contexts
        self.vocabulary, self.prompt_length = branches + contexts, 1
        generator = torch.Generator().manual_seed(10_007 + seed)
        order = torch.rand(contexts, branches, generator=generator).argsort(-1)
        self.values = torch.linspace(1.0, 0.5, branches)[order]
        shape = (contexts, branches, length - 1, branches)
        self.right = torch.randint(branches, shape, generator=generator)
        self.every_prompt = torch.arange(contexts).unsqueeze(1) + branches

    def prompts(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 1) int64."""
        return torch.randint(self.contexts, (count, 1), generator=generator) + self.branches

    def reward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """(count,) in [0, 1]; 0 for a response with a token that is no branch symbol."""
        context, inside = prompts[:, 0] - self.branches, tokens.clamp_max(self.branches - 1)
        right = self.right[context.unsqueeze(1), inside[:, :1], torch.arange(self.length - 1), inside[:, :-1]]
        correct = (right == tokens[:, 1:]).cumprod(-1).float().mean(-1) * (tokens == inside).all(-1)
        return self.values[context, inside[:, 0]] * correct

    def demonstrations(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.prompts(count, generator), torch.randint(self.branches, (count, self.length), generator=generator)

    def every_response(self, length: int) -> Tensor:
        """All sequences of branch symbols, (branches ** length, length), numbered in that base."""
        digits = torch.arange(self.branches**length).unsqueeze(1)
        return digits // self.branches ** torch.arange(length - 1, -1, -1) % self.branches

    def rewards(self) -> Tensor:
        """R of every context and response, (contexts, branches ** length) float64."""
        responses = self.every_response(self.length)
        return torch.stack([self.reward(p.expand(len(responses), 1), responses) for p in self.every_prompt]).double()

    @torch.no_grad()
    def tables(self, model: Transformer) -> list[Tensor]:
        """The policy's law at every prefix: length tensors (contexts, branches ** t, vocabulary) float64."""
        prefixes = self.every_response(self.length - 1)
        prompts = self.every_prompt.repeat_interleave(len(prefixes), 0)
        padded = torch.cat([prefixes, prefixes[:, :1]], 1).repeat(self.contexts, 1)  # the last token is not read
        law = response_log_law(model, prompts, padded).double().softmax(-1)
        law = law.view(self.contexts, len(prefixes), self.length, -1)
        return [law[:, :: self.branches ** (self.length - 1 - t), t] for t in range(self.length)]
