"""Every metric that a report shows: its name in the log, its words, its unit, and the panel that draws it.

One table (``assets/metrics.yaml``), from which the panels of a run, its numbers, the figures over many runs and what is
kept of their logs are made. Names are as verl's logger and ``cppo_verl.trust_region.metrics`` write them.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cppo_verl.reporting.template import data

TRUST_REGION = "actor/trust_region/"
VALIDATION = ("val-core/", "val-aux/")  # what verl's validation logs, and nothing else does

MASKED = TRUST_REGION + "masked_share"
DIVERGENCE_MEAN = TRUST_REGION + "divergence_mean"
DIVERGENCE_MAX = TRUST_REGION + "divergence_max"
FIRST_UPDATE = TRUST_REGION + "first_update/divergence_mean"
BEHIND_MEAN = "training/off_policy/trajectory_staleness_worst/mean"  # verl's own
BEHIND_MAX = "training/off_policy/trajectory_staleness_worst/max"
SPANNING = "trust_region/responses_spanning_versions"  # logged by asynchronous modes alone
SCALE = "trust_region/threshold_scale"
TIME_STEP = "timing_s/step"
TIMES = (TIME_STEP, "timing_s/gen", "timing_s/update_actor")
TOKEN_GEN = "timing_per_token_ms/gen"  # verl's own: of responses
TOKEN_UPDATE = "timing_per_token_ms/update_actor"  # of prompts and responses
GRAD_NORM = "actor/grad_norm"

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
        always: whether the table of numbers names it also where it was not logged.
        log: whether a figure over many runs draws it on a log scale. numbers: in the table without a panel, too.
    """

    names: tuple[str, ...]
    label: str
    unit: str = ""
    panel: str = ""
    short: str = ""
    always: bool = True
    log: bool = False
    numbers: bool = False

    def logged(self, frame: pd.DataFrame) -> str:
        """The name under which a run has values; empty for none."""
        return next((name for name in self.names if len(series(frame, name))), "")

    def of(self, frame: pd.DataFrame) -> pd.Series:
        """Its finite values by step; empty when it was not logged."""
        return series(frame, self.logged(frame))


def series(frame: pd.DataFrame, name: str) -> pd.Series:
    """The finite values of a metric by step; empty when it was not logged."""
    if name not in frame:
        return pd.Series(dtype="float64", index=pd.Index([], dtype="int64", name="step"))
    return frame[name][np.isfinite(frame[name])]


ALL = {key: Metric(**{"names": [key]} | values) for key, values in data("metrics.yaml").items()}
REWARD, STEP_TIME, MASKED_OR_CLIPPED = ALL["critic/rewards/mean"], ALL[TIME_STEP], ALL["masked or clipped"]
# every column that something draws
DRAWN = {name for metric in ALL.values() for name in metric.names}
DRAWN |= {*BY_POSITION, *DIVERGENCE_BY_STALENESS, *FIRST_BY_STALENESS, *MASKED_BY_STALENESS}
