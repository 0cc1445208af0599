"""Hydra reads some thirty YAML files for each of the suite's compositions; with this, each text is parsed once."""

import copy
import io

from omegaconf import OmegaConf

_load, _parsed = OmegaConf.load, {}


def _load_once(file):
    if not hasattr(file, "read"):
        return _load(file)
    text = file.read()
    if text not in _parsed:
        _parsed[text] = _load(io.StringIO(text))
    return copy.deepcopy(_parsed[text])


OmegaConf.load = staticmethod(_load_once)
