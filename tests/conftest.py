"""Generated cases are the same in every run; CPPO_VERL_FUZZ=N draws new ones (and N times as many in test_fuzz)."""

import os

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize="CPPO_VERL_FUZZ" not in os.environ)
settings.load_profile("repeatable")
