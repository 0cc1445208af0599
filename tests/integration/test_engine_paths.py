"""verl's FSDP engine on two gloo ranks, by every way that a GPU run takes and a CPU can: the same D_t and gradients.

The plain model in float32, each response on its own, is what they are compared with. A rank is
``python -m tests.integration.test_engine_paths FOLDER RANK``; the first leaves ``FOLDER/errors.json``, by way:

    log_prob, divergence   largest difference of the responses' log-probs and D_t
    proximal               that of the log-probs at mu's top-K, gathered in a pass without a loss
    gradient               largest difference of a parameter's gradient, relative to the largest gradient
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import verl  # noqa: F401  (loads the plug-in)
from packaging.version import Version
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from cppo_verl.integration import losses
from cppo_verl.integration.topk.logits import PROXIMAL, divergence_of, top_k_of
from tests import ROOT, stand_in
from tests.integration.micro import TEMPERATURE, VOCABULARY, K, Micro, actor_config, assert_is_expected, jagged

pytestmark = pytest.mark.stack

RANKS = 2
SEQUENCES_CAN_BE_SHARED = Version(torch.__version__) >= Version("2.13")  # gloo has the all-to-all that Ulysses needs
LENGTHS = ((3, 5), (2, 1), (4, 8), (5, 13), (3, 2), (6, 9))  # 61 tokens: two ranks need one of padding
TOKENS_PER_RANK = 20  # a micro-batch holds a few responses


@dataclass(frozen=True)
class Way:
    """A set of switches of verl's actor; ``sp`` ranks share a sequence, the others have responses of their own."""

    kind: str = "dense"
    strategy: str = "fsdp2"
    attention: str = "sdpa"
    sp: int = 1
    packed: bool = True
    fused: bool = False
    dtype: str = "fp32"
    model: dict = field(default_factory=dict)
    engine: dict = field(default_factory=dict)


FLASH = {"attention": "flash_attention_2"}
SP = {**FLASH, "sp": 2}
CHECKPOINTING = {"model": {"enable_gradient_checkpointing": True}}
STATES = {**CHECKPOINTING, "engine": {"param_offload": True, "optimizer_offload": True}}
ALL = {**CHECKPOINTING, "engine": {"offload_policy": True}}
LORA = {"lora_rank": 8, "lora_alpha": 16, "target_modules": "all-linear"}  # adds nothing before the first step
WAYS = {
    "padded": Way(packed=False),
    "FSDP1": Way(strategy="fsdp", engine={"use_orig_params": True}),
    "packed": Way(),
    "packed, flash": Way(**FLASH),
    "packed, flash, bf16": Way(**FLASH, dtype="bf16"),
    "SP, sdpa": Way(sp=2),
    "SP": Way(**SP),
    "SP, checkpointing, states offloaded": Way(**SP, **STATES),
    "SP, checkpointing, all offloaded": Way(**SP, **ALL),
    "SP, bf16": Way(**SP, dtype="bf16"),
    "experts, SP, checkpointing, all offloaded": Way(kind="experts", **SP, **ALL),
    # the last ones: verl exchanges the forward of the model's class
    "padded, fused": Way(packed=False, fused=True),
    "packed, fused": Way(fused=True),
    "LoRA, fused": Way(fused=True, model=LORA),
    "SP, fused": Way(**SP, fused=True),
    "SP, fused, bf16": Way(**SP, fused=True, dtype="bf16"),
    "SP, fused, checkpointing, all offloaded": Way(**SP, **ALL, fused=True),
}
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "dtype": "float32"}
SIZES |= {"initializer_range": 0.2}  # far from uniform
CONFIGS = {
    "dense": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "experts": Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("ranks")
    for kind, config in CONFIGS.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / kind)
    environment = {**stand_in.environment(), "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    environment["VERL_ENGINE_DEVICE"] = "cuda"  # where verl registers FSDP1 as well; the classes are the same
    command = [sys.executable, "-W", "ignore", "-m", "tests.integration.test_engine_paths", str(folder)]
    logs = [folder / f"{rank}.log" for rank in range(RANKS)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as said:
            ranks.append(subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stdout=said, stderr=said))
    try:
        for process, log in zip(ranks, logs, strict=True):
            assert process.wait(timeout=300) == 0, log.read_text()[-4000:]
    finally:
        for process in ranks:
            process.kill()
    return json.loads((folder / "errors.json").read_text())


@pytest.mark.parametrize("way", WAYS)
def test_the_plain_models_numbers(errors, way: str):
    """Half precision is another policy, by the rounding; what that does to the estimator is in test_topk."""
    if WAYS[way].sp > 1 and not SEQUENCES_CAN_BE_SHARED:
        pytest.skip(f"gloo of torch {torch.__version__} has no all-to-all")
    found = errors[way]
    if way == "SP, sdpa":
        # each rank's part of a sequence attends to nothing of the other's: why a start check refuses it
        assert found["log_prob"] > 1 and found["divergence"] > 0.1
        return
    if WAYS[way].dtype == "bf16":
        assert 1e-3 < found["log_prob"] < 0.3
        return
    assert found["log_prob"] < 1e-5 and found["divergence"] < 3e-6 and found["proximal"] < 1e-5
    assert found["gradient"] < 1e-5 or way == "LoRA, fused"  # whose parameters are others


# ---- a rank


class Reference:
    """Each response on its own through the plain model, in float32: log-probs, D_t, and by autograd the gradients."""

    def __init__(self, folder: Path):
        self.model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
        self.micro = Micro(lengths=LENGTHS)
        raw = [self.model(x.unsqueeze(0), use_cache=False).logits.squeeze(0) for x in self.micro.input_ids]
        generator = torch.Generator().manual_seed(1)
        noisy = [x.detach() + 0.3 * torch.randn(x.shape, generator=generator) for x in raw]
        self.micro.log_pi = [(x.detach() / TEMPERATURE).log_softmax(-1) for x in raw]
        self.micro.log_mu = [(x / TEMPERATURE).log_softmax(-1) for x in noisy]
        data, logits = self.micro.data(), torch.cat(raw) / TEMPERATURE
        labels = torch.cat(self.micro.input_ids).roll(-1).unsqueeze(-1)
        found = losses.trust_region_loss(actor_config(), student_logits=logits.unsqueeze(0), data=data)
        found["log_probs"] = logits.log_softmax(-1).gather(-1, labels).squeeze(-1).unsqueeze(0)
        offsets = data["input_ids"].offsets()
        output = {name: torch.nested.nested_tensor_from_jagged(x.squeeze(0), offsets) for name, x in found.items()}
        self.divergence = divergence_of(output, data, "tv", K)[0]
        assert_is_expected(self.divergence, self.micro)
        self.log_prob = [x.detach() for x in output["log_probs"].unbind()]
        losses.trust_region_loss(actor_config(), model_output=output, data=data)[0].backward()
        self.gradients = {name: p.grad for name, p in self.model.named_parameters()}

    def batch(self, rows: list[int], way: Way) -> TensorDict:
        """What the trainer hands to a rank that has these rows."""
        flags = {"use_remove_padding": way.packed, "use_fused_kernels": way.fused, "use_dynamic_bsz": True}
        flags |= {"max_token_len_per_gpu": TOKENS_PER_RANK, "global_batch_size": len(LENGTHS)}
        data = self.micro.of_rows(rows).data(**flags)
        whole = self.micro.data()["advantages"].unbind()
        data["advantages"] = jagged([whole[row] for row in rows])
        data["row"] = torch.tensor(rows)
        return data


def build(folder: Path, way: Way):
    """verl's engine, from verl's own registry."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers import engine_workers  # noqa: F401  (its import puts our engine into the registry)
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    model = {"path": str(folder), "load_tokenizer": False, "use_remove_padding": way.packed}
    model |= {"use_fused_kernels": way.fused, "fused_kernel_options": {"impl_backend": "torch" if way.fused else None}}
    model |= {"override_config": {"attn_implementation": way.attention}, "enable_gradient_checkpointing": False}
    engine = {"strategy": way.strategy, "ulysses_sequence_parallel_size": way.sp, "use_torch_compile": False}
    engine["mixed_precision"] = {"param_dtype": way.dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    built = EngineRegistry.new(
        model_type="language_model",
        backend=way.strategy,
        model_config=HFModelConfig(**{**model, **way.model}),
        engine_config=FSDPEngineConfig(**engine, **way.engine),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, clip_grad=1e9, total_training_steps=1),
        checkpoint_config=CheckpointConfig(),
    )
    built.initialize()
    return built


def largest(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    return max((a - b).abs().max().item() for a, b in pairs)


def recomputed(engine, data: TensorDict, mine: Micro) -> float:
    """Error of the anchor's log-probs, as the trainer recomputes them before an update."""
    with engine.eval_mode():
        found = engine.infer_batch(data)["model_output"][PROXIMAL]
    errors = []
    for row, (values, (ids, _, _)) in enumerate(zip(found.unbind(), top_k_of(data, K), strict=True)):
        prompt, response = mine.lengths[row]
        where = slice(prompt - 1, prompt + response - 1)
        errors.append((values[where], mine.log_pi[row][where].gather(-1, ids)))
    return largest(errors)


class FSDP1(FullyShardedDataParallel):
    """Takes the states as they are: rank 0 can hand out its own on an accelerator only, and all have read the same."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "sync_module_states": False})


def gradients_of(engine) -> dict[str, Tensor]:
    """Of the parameters that are trained, whole, on every rank."""
    if not isinstance(engine.module, FSDP1):
        return {name: p.grad.full_tensor() for name, p in engine.module.named_parameters() if p.grad is not None}
    with FSDP1.summon_full_params(engine.module, with_grads=True):
        named = [(name, p.grad.clone()) for name, p in engine.module.named_parameters()]
    return {name.replace("_fsdp_wrapped_module.", ""): gradient for name, gradient in named}


def errors_of(folder: Path, way: Way, reference: Reference) -> dict[str, float]:
    """One update; the errors of this rank's rows, and of the gradients of all."""
    engine = build(folder, way)
    share = len(LENGTHS) * way.sp // RANKS
    first = engine.get_data_parallel_rank() * share
    rows = list(range(first, first + share))
    proximal = recomputed(engine, reference.batch(rows, way), reference.micro.of_rows(rows))
    seen: dict[int, tuple[Tensor, Tensor]] = {}  # by row, its log-probs and D_t

    def loss(model_output=None, data=None, dp_group=None, student_logits=None):
        if student_logits is None:
            found = zip(model_output["log_probs"].unbind(), divergence_of(model_output, data, "tv", K)[0], strict=True)
            for row, (log_prob, divergence) in zip(data["row"].tolist(), found, strict=True):
                seen[row] = log_prob[:-1].detach(), divergence[: LENGTHS[row][1]]
        return losses.trust_region_loss(actor_config(), model_output, data, dp_group, student_logits)

    with engine.train_mode():
        engine.optimizer_zero_grad()
        engine.forward_backward_batch(reference.batch(rows, way), loss)
        gradients = gradients_of(engine)
        engine.optimizer_step()
    assert sorted(seen) == rows
    plain = reference.gradients
    pairs = [(gradient, plain[name]) for name, gradient in gradients.items() if name in plain]
    scale = max(gradient.abs().max().item() for gradient in plain.values())
    return {
        "log_prob": largest((log_prob, reference.log_prob[row][:-1]) for row, (log_prob, _) in seen.items()),
        "divergence": largest((d, reference.divergence[row, : len(d)]) for row, (_, d) in seen.items()),
        "proximal": proximal,
        "gradient": largest(pairs) / scale if pairs else math.nan,  # LoRA's are others
    }


def main(folder: Path, rank: int) -> None:
    from verl.workers.engine.fsdp import transformer_impl

    transformer_impl.FSDP = FSDP1
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    references = {kind: Reference(folder / kind) for kind in CONFIGS}
    errors = {}
    for name, way in WAYS.items():
        if way.sp == 1 or SEQUENCES_CAN_BE_SHARED:
            of_ranks: list = [None] * RANKS
            dist.all_gather_object(of_ranks, errors_of(folder / way.kind, way, references[way.kind]))
            errors[name] = {key: max(one[key] for one in of_ranks) for key in of_ranks[0]}
    if rank == 0:
        (folder / "errors.json").write_text(json.dumps(errors))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
