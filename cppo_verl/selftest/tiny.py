"""Stage ``tiny``: the arithmetic data and the warm-started two-layer Qwen3 that the stack is tried with."""

from collections.abc import Iterator

from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import Row, equal, noted


def measure(setting: Setting) -> Iterator[Row]:
    """The stage's rows."""
    from data_prep import arithmetic, storage, tiny_qwen3

    arithmetic.prepare(setting.data, arithmetic.Arguments())
    tiny_qwen3.prepare(setting.data, setting.tiny_model, tiny_qwen3.Recipe(), lambda line: print(line, flush=True))
    manifest, recipe = storage.read_manifest(setting.tiny_model), tiny_qwen3.Recipe()
    assert manifest is not None
    accuracy = manifest["sampled_accuracy"]
    within = recipe.lowest <= accuracy <= recipe.highest
    yield equal(
        "accuracy of its samples in range", within, True, note=f"{accuracy:.2f} in {recipe.lowest}..{recipe.highest}"
    )
    yield noted("parameters", manifest["parameters"])
