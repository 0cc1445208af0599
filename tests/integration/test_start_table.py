"""What is said before a start: argument lists as people have them, and a preset put in front."""

import pytest
from omegaconf import OmegaConf

from cppo_verl import presets
from cppo_verl.integration import checks, hydra_check, start_table
from cppo_verl.launch import supervise

ACTOR, OPTIONS = "actor_rollout_ref.actor.", "trainer.v1.trust_region."
KNOB = ACTOR + "policy_loss."
LEFT_OUT, TRAINED_ON = "left out of the actor's update", "trained on as all others"
FAMILIES = {  # (arguments, words of lines that must be there, words that no line may have)
    "grpo": (
        ["algorithm.adv_estimator=grpo", ACTOR + "use_kl_loss=False", ACTOR + "entropy_coeff=0"],
        ["yours algorithm.adv_estimator=grpo (preset: group_relative)", "still left out", LEFT_OUT],
        ["use_kl_loss", "entropy_coeff"],
    ),
    "grpo with a KL term": (
        ["algorithm.adv_estimator=grpo", ACTOR + "use_kl_loss=True", ACTOR + "kl_loss_coef=0.001"],
        ["yours actor_rollout_ref.actor.use_kl_loss=True (preset: False)", "every response is trained on", TRAINED_ON],
        ["still left out"],
    ),
    "Dr. GRPO": (
        ["algorithm.adv_estimator=grpo", "algorithm.norm_adv_by_std_in_grpo=False", ACTOR + "loss_scale_factor=1000"],
        ["loss_scale_factor=1000 (preset: 512)", "divided by it", LEFT_OUT],
        ["norm_adv"],
    ),
    "DAPO": (
        [ACTOR + "clip_ratio_low=0.2", ACTOR + "clip_ratio_high=0.28", ACTOR + "clip_ratio_c=10.0"]
        + [ACTOR + "loss_agg_mode=token-mean", "algorithm.filter_groups.enable=True"],
        ["no effect actor_rollout_ref.actor.clip_ratio_high=0.28 is not looked at by cppo", "policy_loss.delta"]
        + ["clip_ratio_c=10.0", "policy_loss.ratio_cap", "loss_agg_mode=token-mean"],
        ["clip_ratio_low"],
    ),
    "distillation": (["distillation.enabled=True"], [TRAINED_ON, "because of distillation.enabled=True"], []),
    "a knob of another choice": ([KNOB + "restore_strength=0.5"], ["no effect", "restore_strength=0.5"], ["yours"]),
    "a knob": ([KNOB + "delta=0.2"], ["delta=0.2", "yours", "(preset: 0.15)"], ["no effect"]),
    "verl's generation beside training": ([OPTIONS + "mode=colocate_async"], ["trainer verl's colocate_async"], []),
    "another engine": ([ACTOR + "strategy=veomni"], ["engine veomni with vllm: nobody has run this yet"], []),
}


def table(preset: str, *overrides: str) -> str:
    """What is said of an accepted run, a space between columns."""
    given = ["actor_rollout_ref.rollout.n=8", *overrides]
    config = presets.compose(preset, given)
    given.append(f"+trust_region={preset}")
    checks.require(config, overrides=given)
    return "\n".join(" ".join(line.split()) for line in start_table.lines(config, given))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_runs_people_have(family):
    arguments, there, absent = FAMILIES[family]
    said = table("cppo", *arguments)
    assert [words for words in there if words not in said] == []
    assert [words for words in absent if words in said] == []


@pytest.mark.parametrize("preset", presets.names())
def test_a_preset_alone_takes_nothing_over(preset):
    said = table(preset)
    assert f"of the preset {preset}" in said
    assert "yours" not in said and "no effect" not in said and "nobody has run" not in said, said


@pytest.mark.parametrize(
    ("preset", "override", "words"),
    [
        ("grpo", ACTOR + "clip_ratio_high=0.3", "clip_ratio_high=0.3 (preset: 0.28)"),
        ("grpo", ACTOR + "clip_ratio=0.1", "clip_ratio=0.1 is not looked at by vanilla"),
        ("gspo", ACTOR + "clip_ratio_low=0.0004", "clip_ratio_low=0.0004 (preset: 0.0003)"),
        ("cppo", KNOB + "trace_cap=3", "trace_cap=3 is not looked at by cppo"),
        ("dppo_tv", KNOB + "w_min=0.5", "policy_loss.w_min=0.5 is not looked at by dppo"),
        ("trm_max", KNOB + "loss_mode=trm_max_avg", "rule trm_max_avg, of the preset trm_max"),
    ],
)
def test_other_rules(preset, override, words):
    assert words in table(preset, override)


def test_it_is_printed_and_kept_beside_the_config(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(supervise.MARKER, raising=False)
    config = presets.compose("cppo", ["actor_rollout_ref.rollout.n=8", ACTOR + "strategy=megatron"])
    OmegaConf.set_struct(config, False)
    config.hydra = {
        "run": {"dir": str(tmp_path / "hydra")},
        "job": {"name": "fully_async_main"},
        "overrides": {"task": ["actor_rollout_ref.rollout.n=8"], "hydra": []},
        "runtime": {"choices": {"trust_region": "cppo"}, "config_sources": []},  # as from a config of the user's own
    }
    for folder in (tmp_path / "hydra", tmp_path / "run"):
        hydra_check.StartCheck().on_run_start(config)
        said = capsys.readouterr().out
        assert "cppo, of the preset cppo" in said and "fully_async_main is not verl.trainer.main_ppo" in said
        assert (folder / start_table.FILE).read_text() == said
        monkeypatch.setenv(supervise.MARKER, str(tmp_path / "run"))
