"""Stage ``tiny``: the arithmetic data and the warm-started two-layer Qwen3 that the stack is tried with."""

from data_prep import arithmetic, storage, tiny_qwen3


def test_model(setting, table):
    data, model, recipe = setting.tiny / "data", setting.tiny / "model", tiny_qwen3.Recipe()
    arithmetic.prepare(data, arithmetic.Arguments())
    tiny_qwen3.prepare(data, model, recipe)
    accuracy = storage.read_manifest(model)["sampled_accuracy"]
    said = f"{accuracy:.2f} in {recipe.lowest}..{recipe.highest}"
    table.equal("accuracy of its samples in range", recipe.lowest <= accuracy <= recipe.highest, True, note=said)
