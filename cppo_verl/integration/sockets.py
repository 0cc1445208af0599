"""Weights reach the rollout through a socket that belongs to one run.

verl names that socket in /tmp by Ray's job id. Each run that starts a Ray of its own is its job 01000000, so two such
runs on one machine take each other's socket: both hang, or one samples from the other's weights
(verl-project/verl#6246 made the job id a part of the name). Here the id of Ray's node, which Ray draws at every start,
is a part too. verl offers no setting for it, so two constructors are wrapped: the sender's and, for the receiver, that
of vLLM's server, whose environment vLLM's processes inherit.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

JOB = "VERL_RAY_JOB_ID"  # where verl's vLLM workers look for the job in the socket's name


def own_sender(vllm_rollout) -> None:
    """Hook of ``verl.workers.rollout.vllm_rollout.vllm_rollout``, in the trainer's workers."""

    def rename(adapter, job: str, job_and_node: str) -> None:
        adapter.zmq_handle = adapter.zmq_handle.replace(job, job_and_node)

    _once_constructed(vllm_rollout.ServerAdapter, rename)


def own_receiver(vllm_async_server) -> None:
    """Hook of ``verl.workers.rollout.vllm_rollout.vllm_async_server``, in the actor that starts vLLM."""

    def rename(_, __, job_and_node: str) -> None:
        os.environ[JOB] = job_and_node

    _once_constructed(vllm_async_server.vLLMHttpServer, rename)


def _once_constructed(kind: Any, rename: Callable[[Any, str, str], None]) -> None:
    """Call ``rename`` with each object, Ray's job id as verl writes it, and what stands for it here."""
    construct = kind.__init__

    @wraps(construct)
    def construct_and_rename(self, *args, **kwargs):
        import ray

        construct(self, *args, **kwargs)
        context = ray.get_runtime_context()
        rename(self, context.get_job_id(), f"{context.get_job_id()}-{context.get_node_id()[:12]}")

    kind.__init__ = construct_and_rename
