"""Switches that GPU runs take, through the real stack on CPU. What no other test's start of the stack carries:

test_stack       fused kernels under every preset; two ranks that share each sequence (Ulysses), with checkpointing and
                 states offloaded, killed and resumed
test_recipes     the scripts' own flags, bfloat16 among them
here             fused kernels in bfloat16 under Ulysses, all states on the host: CPPO_VERL_ALL_PATHS=1 runs it

flash-attn is its stand-in (tests/stand_in). ``tests/integration/test_engine_paths`` has the same ways against the plain
model's numbers.
"""

import os

import pytest

from tests import stand_in

from .runs import SHARED_SEQUENCES, P, Work, ended_well, quickstart, records
from .test_recipes import BFLOAT16

UNLESS_ALL = pytest.mark.skipif(not os.environ.get("CPPO_VERL_ALL_PATHS"), reason="CPPO_VERL_ALL_PATHS is not set")
SHORT = (
    "data.train_batch_size=8",
    "actor_rollout_ref.rollout.n=4",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
)


def test_shared_sequences_without_flash_attention_do_not_start(work: Work):
    """Seconds: before Ray, data or a model."""
    sdpa = "++actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    done = quickstart(work, *SHARED_SEQUENCES, sdpa, RUN=str(work.folder / "refused"), RANKS="2")
    assert done.returncode != 0
    assert "ulysses_sequence_parallel_size=2" in done.stdout + done.stderr
    assert "attn_implementation=flash_attention_2" in done.stdout + done.stderr
    assert not (work.folder / "refused" / "logs").exists()


@UNLESS_ALL
def test_fused_kernels_in_bfloat16_under_ulysses(work: Work):
    run = work.folder / "fused"
    done = quickstart(
        work,
        *SHORT,
        *BFLOAT16,
        *SHARED_SEQUENCES,
        "actor_rollout_ref.actor.fsdp_config.offload_policy=true",
        "actor_rollout_ref.model.use_fused_kernels=true",
        METHOD="cppo_topk",
        RUN=str(run),
        RANKS="2",
        STEPS="3",
        **stand_in.variables(),
    )
    ended_well(done)
    steps = [record["data"] for record in records(run) if record["step"] > 0]
    assert len(steps) == 3
    for step in steps:
        assert step["actor/grad_norm"] > 0
        assert 1e-5 < step[P + "first_update/divergence_mean"] < 1e-2
