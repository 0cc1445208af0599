"""Weights reach the rollout through a socket that belongs to one run.

verl names that socket in /tmp by Ray's job id. Each run that starts a Ray of its own is its job 01000000, so two such
runs on one machine take each other's socket: both hang, or one samples from the other's weights
(verl-project/verl#6246 made the job id a part of the name). Here the id of Ray's node, which Ray draws at every start,
is a part too. verl offers no setting for it, so two constructors are wrapped: the sender's and, for the receiver, that
of vLLM's server, whose environment vLLM's processes inherit.
"""

import os
from functools import wraps
from types import ModuleType

JOB = "VERL_RAY_JOB_ID"  # where verl's vLLM workers look for the job in the socket's name


def _job_and_node(job: str) -> str:
    import ray

    return f"{job}-{ray.get_runtime_context().get_node_id()[:12]}"


def own_sender(vllm_rollout: ModuleType) -> None:
    """Hook of ``verl.workers.rollout.vllm_rollout.vllm_rollout``, in the trainer's workers."""
    adapter = vllm_rollout.ServerAdapter
    construct = adapter.__init__

    @wraps(construct)
    def construct_and_name(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        job = vllm_rollout.ray.get_runtime_context().get_job_id()  # as verl's constructor did
        self.zmq_handle = self.zmq_handle.replace(job, _job_and_node(job))

    adapter.__init__ = construct_and_name


def own_receiver(vllm_async_server: ModuleType) -> None:
    """Hook of ``verl.workers.rollout.vllm_rollout.vllm_async_server``, in the actor that starts vLLM."""
    server = vllm_async_server.vLLMHttpServer
    construct = server.__init__

    @wraps(construct)
    def construct_and_name(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        os.environ[JOB] = _job_and_node(os.environ[JOB])

    server.__init__ = construct_and_name
