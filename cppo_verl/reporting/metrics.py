"""Every metric that a report shows: its name in the log, its words, its unit, and the panel that draws it.

One table, from which the panels of a run, its numbers, the figures over many runs and what is kept of their logs are
made. Names are as verl's logger and ``cppo_verl.trust_region.metrics`` write them.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

TRUST_REGION = "actor/trust_region/"
VALIDATION = ("val-core/", "val-aux/")  # what verl's validation logs, and nothing else does

MASKED = TRUST_REGION + "masked_share"
MASKED_BY_TOKEN = TRUST_REGION + "masked_share_token_threshold"
MASKED_BY_BUDGET = TRUST_REGION + "masked_share_prefix_budget"
MASKED_POSITIVE = TRUST_REGION + "masked_share_positive"
MASKED_NEGATIVE = TRUST_REGION + "masked_share_negative"
EFFECTIVE_BUDGET = TRUST_REGION + "effective_delta_b"
PREFIX_AVERAGE = TRUST_REGION + "prefix_average"
DIVERGENCE_MEAN = TRUST_REGION + "divergence_mean"
DIVERGENCE_P99 = TRUST_REGION + "divergence_p99"
DIVERGENCE_MAX = TRUST_REGION + "divergence_max"
FIRST_UPDATE = TRUST_REGION + "first_update/divergence_mean"
SAMPLE_SIZE_TOKENS = TRUST_REGION + "effective_sample_size/tokens"
SAMPLE_SIZE_RESPONSES = TRUST_REGION + "effective_sample_size/responses"
BEHIND_MEAN = "training/off_policy/trajectory_staleness_worst/mean"  # verl's own
BEHIND_MAX = "training/off_policy/trajectory_staleness_worst/max"
SPANNING = "trust_region/responses_spanning_versions"  # logged by asynchronous modes alone
SCALE = "trust_region/threshold_scale"
ZERO_VARIANCE = "trust_region/zero_variance_share"
TIME_STEP, TIME_GEN, TIME_UPDATE = "timing_s/step", "timing_s/gen", "timing_s/update_actor"
TOKEN_GEN = "timing_per_token_ms/gen"  # verl's own: of responses
TOKEN_UPDATE = "timing_per_token_ms/update_actor"  # of prompts and responses
LENGTH, GRAD_NORM = "response_length/mean", "actor/grad_norm"

POSITION_BINS = 8
STALENESS_BINS = 6  # versions behind: 0, 1, ... 4, and 5 or more
BY_POSITION = tuple(f"{TRUST_REGION}divergence_by_position/{i}" for i in range(POSITION_BINS))
DIVERGENCE_BY_STALENESS = tuple(f"{TRUST_REGION}divergence_by_staleness/{i}" for i in range(STALENESS_BINS))
FIRST_BY_STALENESS = tuple(f"{TRUST_REGION}first_update/divergence_by_staleness/{i}" for i in range(STALENESS_BINS))
MASKED_BY_STALENESS = tuple(f"{TRUST_REGION}masked_share_by_staleness/{i}" for i in range(STALENESS_BINS))


@dataclass(frozen=True)
class Metric:
    """A metric of the log.

    Attributes:
        names: as logged; a run's is the first of them that has a value.
        label: in words. unit: ``%`` (logged as a fraction), ``s`` or empty.
        panel: key of the panel of a run that draws it, empty for none. short: what the panel's legend calls it.
        fold: ``mean`` or ``max``, what stands for several steps.
        always: whether the table of numbers names it also where it was not logged.
        log: whether a figure over many runs draws it on a log scale.
    """

    names: tuple[str, ...]
    label: str
    unit: str = ""
    panel: str = ""
    short: str = ""
    fold: str = "mean"
    always: bool = True
    log: bool = False

    @property
    def title(self) -> str:
        return self.label[:1].upper() + self.label[1:]

    def of(self, frame: pd.DataFrame) -> pd.Series:
        """Its finite values by step; empty when it was not logged."""
        return series(frame, first_logged(frame, self.names) or self.names[0])


def series(frame: pd.DataFrame, name: str) -> pd.Series:
    """The finite values of a metric by step; empty when it was not logged."""
    if name not in frame:
        return pd.Series(dtype="float64", index=pd.Index([], dtype="int64", name="step"))
    return frame[name][np.isfinite(frame[name])]


def first_logged(frame: pd.DataFrame, candidates: tuple[str, ...]) -> str | None:
    """The first of these metrics that has a value."""
    return next((name for name in candidates if len(series(frame, name))), None)


REWARD = Metric(("critic/rewards/mean", "critic/score/mean"), "training reward", panel="learning")
STEP_TIME = Metric((TIME_STEP,), "time a step", "s", "time", "whole step")
MASKED_SHARE = Metric((MASKED,), "masked tokens, all", "%", "masked", "all")

NUMBERS = (  # in the order of the table of numbers
    REWARD,
    MASKED_SHARE,
    Metric((MASKED_BY_TOKEN,), "masked by the token threshold", "%", "masked", "token threshold"),
    Metric((MASKED_BY_BUDGET,), "masked by the prefix budget", "%", "masked", "prefix budget"),
    Metric((MASKED_POSITIVE,), "masked, advantage above 0", "%", "masked", "advantage > 0"),
    Metric((MASKED_NEGATIVE,), "masked, advantage below 0", "%", "masked", "advantage < 0"),
    Metric((BY_POSITION[0],), "divergence, first eighth of a response", panel="positions"),
    Metric((BY_POSITION[-1],), "divergence, last eighth of a response", panel="positions"),
    Metric((EFFECTIVE_BUDGET,), "effective delta_b", panel="budget"),
    Metric((PREFIX_AVERAGE,), "prefix average S/W", panel="budget"),
    Metric((DIVERGENCE_MEAN,), "divergence, mean", panel="divergence", short="mean"),
    Metric((DIVERGENCE_P99,), "divergence, 99th percentile", panel="divergence", short="99th percentile"),
    Metric((DIVERGENCE_MAX,), "divergence, largest", panel="divergence", short="largest", fold="max"),
    Metric((FIRST_UPDATE,), "first-update gap", panel="divergence", log=True),
    STEP_TIME,
    Metric((TIME_GEN,), "of it, generation", "s", "time", "generation"),
    Metric((TIME_UPDATE,), "of it, actor update", "s", "time", "actor update"),
    Metric((LENGTH,), "response length, tokens"),
    Metric((GRAD_NORM,), "gradient norm", log=True),
    # of asynchronous runs, and of those with a budget_target
    Metric((BEHIND_MEAN,), "versions behind, mean", panel="versions", short="mean", always=False),
    Metric((BEHIND_MAX,), "versions behind, oldest", panel="versions", short="oldest response", always=False),
    Metric((SPANNING,), "responses sampled with several versions", "%", "versions", always=False),
    Metric((SAMPLE_SIZE_TOKENS,), "effective sample, tokens", "%", "versions", "of the tokens", always=False),
    Metric((SAMPLE_SIZE_RESPONSES,), "effective sample, responses", "%", "versions", "of the responses", always=False),
    Metric((FIRST_BY_STALENESS[0],), "divergence before any update, newest weights", panel="staleness", always=False),
    Metric((FIRST_BY_STALENESS[1],), "the same, one version behind", panel="staleness", always=False),
    Metric((FIRST_BY_STALENESS[-1],), "the same, five or more behind", panel="staleness", always=False),
    Metric((SCALE,), "scale of the thresholds", "", "scale", "scale of delta and delta_b", always=False, log=True),
)
OF_MANY = (  # drawn over many runs alone
    # verl's own losses (GRPO, CISPO) report the clipped share
    MASKED_OR_CLIPPED := Metric((MASKED, "actor/pg_clipfrac"), "masked share of the tokens", "%"),
    Metric(("actor/entropy", "actor/entropy_loss"), "entropy"),
    Metric((ZERO_VARIANCE,), "responses without reward variance", "%"),
)

BY_NAME = {metric.names[0]: metric for metric in NUMBERS} | {m.names[0]: m for m in OF_MANY if m.names[0] != MASKED}
DRAWN = dict.fromkeys(name for metric in (*NUMBERS, *OF_MANY) for name in metric.names) | dict.fromkeys(
    (*BY_POSITION, *DIVERGENCE_BY_STALENESS, *FIRST_BY_STALENESS, *MASKED_BY_STALENESS)
)  # every column that something draws
