"""``anchor=proximal``: the trust region is measured from the trained policy at the start of the step.

verl's decoupled mode does it: it recomputes ``old_log_probs`` with the step's first weights (one more forward over the
batch), and its rollout correction brings the way from mu to there as a truncated importance weight a token. Here only
its switches are set.
"""

from omegaconf import DictConfig, OmegaConf, open_dict

from cppo_verl.trust_region.knobs import KEY_PREFIX


def is_proximal(config: DictConfig) -> bool:
    """Whether a composed verl config asks for the proximal anchor."""
    return OmegaConf.select(config, f"{KEY_PREFIX}.anchor") == "proximal"


def install(config: DictConfig) -> None:
    """Have verl recompute old log-probs and weigh tokens; what a user set of the weight stays."""
    if not is_proximal(config):
        return
    with open_dict(config):
        correction = config.algorithm.rollout_correction
        correction.bypass_mode = False
        if correction.get("rollout_is") is None:
            correction.rollout_is = "token"
