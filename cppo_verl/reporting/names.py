"""Names of the metrics that the report shows, as verl's logger and ``cppo_verl.trust_region.metrics`` write them."""

INSPECTOR = "inspect.html"  # the page of single tokens, beside a run's report

TRUST_REGION = "actor/trust_region/"

REWARD = ("critic/rewards/mean", "critic/score/mean")  # training reward: the first of these that is logged

MASKED = TRUST_REGION + "masked_share"
MASKED_BY_TOKEN = TRUST_REGION + "masked_share_token_threshold"
MASKED_BY_BUDGET = TRUST_REGION + "masked_share_prefix_budget"
MASKED_POSITIVE = TRUST_REGION + "masked_share_positive"
MASKED_NEGATIVE = TRUST_REGION + "masked_share_negative"

POSITION_BINS = 8
BY_POSITION = tuple(f"{TRUST_REGION}divergence_by_position/{i}" for i in range(POSITION_BINS))

EFFECTIVE_BUDGET = TRUST_REGION + "effective_delta_b"
PREFIX_AVERAGE = TRUST_REGION + "prefix_average"

DIVERGENCE_MEAN = TRUST_REGION + "divergence_mean"
DIVERGENCE_P99 = TRUST_REGION + "divergence_p99"
DIVERGENCE_MAX = TRUST_REGION + "divergence_max"
FIRST_UPDATE = TRUST_REGION + "first_update/divergence_mean"

STALENESS_BINS = 6  # versions behind: 0, 1, ... 4, and 5 or more
DIVERGENCE_BY_STALENESS = tuple(f"{TRUST_REGION}divergence_by_staleness/{i}" for i in range(STALENESS_BINS))
FIRST_BY_STALENESS = tuple(f"{TRUST_REGION}first_update/divergence_by_staleness/{i}" for i in range(STALENESS_BINS))
MASKED_BY_STALENESS = tuple(f"{TRUST_REGION}masked_share_by_staleness/{i}" for i in range(STALENESS_BINS))
BEHIND_MEAN = "training/off_policy/trajectory_staleness_worst/mean"  # verl's own
BEHIND_MAX = "training/off_policy/trajectory_staleness_worst/max"
SPANNING = "trust_region/responses_spanning_versions"  # logged by asynchronous modes alone
SAMPLE_SIZE_TOKENS = TRUST_REGION + "effective_sample_size/tokens"
SAMPLE_SIZE_RESPONSES = TRUST_REGION + "effective_sample_size/responses"
SCALE = "trust_region/threshold_scale"

TIME_STEP = "timing_s/step"
TIME_GEN = "timing_s/gen"
TIME_UPDATE = "timing_s/update_actor"
TOKEN_GEN = "timing_per_token_ms/gen"  # verl's own: of responses
TOKEN_UPDATE = "timing_per_token_ms/update_actor"  # of prompts and responses

VALIDATION = ("val-core/", "val-aux/")  # what verl's validation logs, and nothing else does

LENGTH = "response_length/mean"
GRAD_NORM = "actor/grad_norm"
ENTROPY = ("actor/entropy", "actor/entropy_loss")
MASKED_OR_CLIPPED = (MASKED, "actor/pg_clipfrac")  # verl's own losses (GRPO, CISPO) report the clipped share
ZERO_VARIANCE = "trust_region/zero_variance_share"

LINES = (  # what is drawn step by step
    *REWARD, *MASKED_OR_CLIPPED, MASKED_BY_TOKEN, MASKED_BY_BUDGET, MASKED_POSITIVE, MASKED_NEGATIVE,
    EFFECTIVE_BUDGET, PREFIX_AVERAGE, DIVERGENCE_MEAN, DIVERGENCE_P99, DIVERGENCE_MAX, FIRST_UPDATE,
    BEHIND_MEAN, BEHIND_MAX, SPANNING, SAMPLE_SIZE_TOKENS, SAMPLE_SIZE_RESPONSES, SCALE,
    TIME_STEP, TIME_GEN, TIME_UPDATE, LENGTH, GRAD_NORM, *ENTROPY, ZERO_VARIANCE,
)  # fmt: skip
