"""A command line that the launcher takes; its paths are not verl's, which begin with ``~``."""

PATHS = ["actor_rollout_ref.model.path=/m", "data.train_files=/t.parquet", "data.val_files=[/v.parquet]"]
COMMAND = ["+trust_region=cppo", "actor_rollout_ref.rollout.n=8", *PATHS]
