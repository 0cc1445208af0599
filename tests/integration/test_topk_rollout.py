"""The top-K estimator in the rollout: vLLM's answer, a session's parts, what travels."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import verl  # noqa: F401  (loads the plug-in)
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient
from verl.workers.rollout.replica import TokenOutput

from cppo_verl import presets
from cppo_verl.integration import topk
from cppo_verl.integration.topk import FIELD, agent_loop
from cppo_verl.integration.topk.agent_loop import Part, collecting, lay_out
from cppo_verl.trust_region.topk import pack, unpack

# ---- server

ROWS = [([5, 5, 7], [-0.1, -0.1, -2.5]), ([9, 5, 7], [-4.0, -0.2, -2.0])]  # sampled among the top 2; then outside


def vllms_answer(rows=ROWS):
    """vLLM's own flat form."""
    from vllm.logprobs import FlatLogprobs, append_logprobs_for_next_position

    answer = FlatLogprobs()
    for ids, values in rows:
        append_logprobs_for_next_position(answer, ids, values, [None] * 3, 1, 2)
    return answer


def test_server_reads_vllms_flat_rows():
    from cppo_verl.integration.topk.server import top_k_arrays

    arrays = top_k_arrays(vllms_answer(), [5, 9], 2)
    assert arrays["ids"].tolist() == [[5, 5, 7], [9, 5, 7]] and arrays["ids"].dtype == np.int32
    assert np.array_equal(arrays["log_probs"], np.array([row for _, row in ROWS], dtype=np.float32))
    packed = pack(*map(torch.from_numpy, arrays.values()), torch.tensor([5, 9]), torch.tensor([-0.1, -4.0]))
    assert packed[2:4].tolist() == [1, 2]  # the sampled token counts once
    assert top_k_arrays(vllms_answer(), [5], 2)["ids"].tolist() == [[5, 5, 7]]  # an abort may leave a position behind
    for tokens, k in (([7, 9], 2), ([5, 9, 1], 2), ([5, 9], 3)):
        with pytest.raises(ValueError, match="do not list each sampled token first"):
            top_k_arrays(vllms_answer(), tokens, k)


# ---- a session's parts, laid against its responses


def part(start: int, tokens: list[int], log_prob: float = -1.0, shift: int = 0) -> Part:
    """Top-2 whose ids say which token they belong to, 100 * token + column; sampled at ``log_prob``."""
    ids = np.array([[t, 100 * t + shift, 100 * t + shift + 1] for t in tokens], dtype=np.int32)
    values = np.array([[log_prob, -2.0, -3.0]] * len(tokens), dtype=np.float32)
    return Part(start, tokens, ids, values)


def output_of(prompt: list[int], response: list[int], log_probs: list[float] | None = None) -> AgentLoopOutput:
    log_probs = log_probs or [-1.0] * len(response)
    mask = [int(value != 0) for value in log_probs]
    fields = {"prompt_ids": prompt, "response_ids": response, "response_mask": mask, "response_logprobs": log_probs}
    return AgentLoopOutput(**fields, metrics=AgentLoopMetrics(), extra_fields={"min_global_steps": 3})


def firsts(parts: list[Part], output: AgentLoopOutput) -> list[int]:
    """The first of mu's top-2 at each token, 0 where there is none."""
    ids, log_probs = lay_out(parts, output)
    assert torch.equal((log_probs > -torch.inf).any(-1), ids[:, -1] > 0)
    return ids[:, 1].tolist() if ids.shape[1] > 1 else [0] * len(ids)


# Two outputs of one session, after prompts of equal length, that begin alike: the log-probs tell whose a part is
TWINS = [part(2, [11, 12, 13], -0.5), part(2, [11, 12, 99], -0.7, shift=5)]


@pytest.mark.parametrize(
    ("parts", "output", "found"),
    [
        # in three pieces, the second aborted at once: each call's prompt tells where it starts
        (
            [part(2, [3, 4]), part(4, [5]), part(5, [6, 7])],
            output_of([1, 2], [3, 4, 5, 6, 7]),
            [300, 400, 500, 600, 700],
        ),
        # a tool, a cut
        ([part(1, [3, 4]), part(5, [7, 8, 9])], output_of([1], [3, 4, 5, 6, 7, 8]), [300, 400, 0, 0, 700, 800]),
        ([part(1, [3, 4, 9])], output_of([1], [3, 4, 5]), [300, 400, 0]),  # of another branch
        ([part(1, [3])], output_of([1, 3], [5]), [0]),  # of the prompt
        ([part(1, [3, 4])], output_of([1], [3, 4, 5], [-1.0, -0.9, 0.0]), [300, 0, 0]),  # one re-scored, one a tool's
        ([], output_of([1], [5, 6]), [0, 0]),
        (TWINS, output_of([1, 2], [11, 12, 13], [-0.5] * 3), [1100, 1200, 1300]),
        (TWINS, output_of([3, 4], [11, 12, 99], [-0.7] * 3), [1105, 1205, 9905]),
    ],
)
def test_parts_are_laid_against_their_tokens(parts, output, found):
    assert firsts(parts, output) == found


def test_what_goes_to_the_queue_has_one_field_more(monkeypatch, caplog):
    """And trained tokens that no generation call brought are told of, once."""
    worker_class = agent_loop.TopKAgentLoopWorker
    stored = []

    async def verls(self, output, validate, **_):
        stored.append(output.as_dict())

    monkeypatch.setattr(worker_class.__mro__[1], "_agent_loop_postprocess", verls)
    worker = object.__new__(worker_class)
    worker.warned, worker.cutoff = False, 0.0
    output = output_of([1], [3, 4, 5], [-1.0, -0.9, 0.0])  # one is another's, one a tool's

    async def session():
        agent_loop._parts.set([part(1, [3, 4])])
        for _ in range(2):
            await worker._agent_loop_postprocess(output, validate=False)
        await worker._agent_loop_postprocess(output_of([1], [2]), validate=True)

    with caplog.at_level("WARNING"):
        asyncio.run(session())
    assert caplog.text.count("1 of 2 trained tokens of a response have no top-K") == 1
    first, _, validation = stored
    packed = first.pop(FIELD)
    assert unpack(packed, 2)[0][0].tolist() == [300, 301]
    assert first.keys() == validation.keys()


def test_the_client_collects_every_call():
    """verl's client that resumes by itself: the server is aborted after two tokens, then goes on."""
    config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(name="vllm")))
    client = FullyAsyncLLMServerClient(config=config)
    client.__class__ = collecting(FullyAsyncLLMServerClient)
    reasons = iter(["aborted", "completed"])

    async def generate(*, prompt_ids, **_):
        """Tokens count up from the prompt's length."""
        reason, start = next(reasons), len(prompt_ids)
        made = part(start, list(range(start, start + (2 if reason == "aborted" else 3))))
        arrays = {"ids": made.ids, "log_probs": made.log_probs}
        fields = {"global_steps": 1, "topk": arrays}
        log_probs = [-1.0] * len(made.token_ids)
        return TokenOutput(token_ids=made.token_ids, log_probs=log_probs, stop_reason=reason, extra_fields=fields)

    async def acquire(request_id, **_):
        return "server", SimpleNamespace(generate=SimpleNamespace(remote=generate))

    async def session():
        agent_loop._parts.set([])
        output = await client.generate("r", prompt_ids=[0, 1, 2], sampling_params={"logprobs": 2})
        return output, agent_loop._parts.get()

    client._acquire_server, client._release_server = acquire, lambda *_, **__: None
    output, parts = asyncio.run(session())
    assert "topk" not in output.extra_fields and len(output.token_ids) == 5
    assert firsts(parts, output_of([0, 1, 2], output.token_ids)) == [100 * token for token in output.token_ids]


def test_install_raises_vllms_limit_with_k(monkeypatch: pytest.MonkeyPatch):
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    config = presets.compose("cppo_topk", ["actor_rollout_ref.actor.policy_loss.topk=50"])
    monkeypatch.setattr(RolloutReplicaRegistry, "_registry", dict(RolloutReplicaRegistry._registry))
    topk.install(config)
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.max_logprobs == 50
    assert config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == topk.MANAGER
    assert RolloutReplicaRegistry._registry["vllm"] is topk._load_replica
