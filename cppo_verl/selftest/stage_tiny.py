"""Stage ``tiny``: the arithmetic data and the warm-started two-layer Qwen3 that the stack is tried with."""

from data_prep import arithmetic, storage, tiny_qwen3


def test_model(setting, table):
    arithmetic.prepare(setting.data, arithmetic.Arguments())
    recipe = tiny_qwen3.Recipe()
    tiny_qwen3.prepare(setting.data, setting.tiny_model, recipe, lambda line: print(line, flush=True))
    manifest = storage.read_manifest(setting.tiny_model)
    assert manifest is not None
    accuracy = manifest["sampled_accuracy"]
    said = f"{accuracy:.2f} in {recipe.lowest}..{recipe.highest}"
    table.equal("accuracy of its samples in range", recipe.lowest <= accuracy <= recipe.highest, True, note=said)
    table.noted("parameters", manifest["parameters"])
