"""Named in VERL_USE_EXTERNAL_MODULES: has transformers accept ``flash_attn`` in a process without a GPU.

transformers looks for the package, its distribution, its version, and for a GPU; the last question alone is answered
for it. The answer is kept by transformers' own cache, wherever the function was imported to.
"""

from unittest import mock

from transformers.utils import import_utils

import_utils.is_flash_attn_2_available.cache_clear()  # vLLM's workers have asked before
with mock.patch.object(import_utils, "is_torch_cuda_available", lambda: True):
    if not import_utils.is_flash_attn_2_available():
        raise ImportError("transformers does not see tests/stand_in/flash_attn: is the folder in PYTHONPATH?")
