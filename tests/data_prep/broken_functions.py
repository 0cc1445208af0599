"""Functions whose trial fails, as it would where computing needs a right that is gone."""

from tests.data_prep.hostile_functions import compute, prepare

__all__ = ["compute", "prepare"]
TRIAL = ("compute", ["1/2"], ["0.25", "colorsys"])
