"""The top-K is looked up a token too late. Named in VERL_USE_EXTERNAL_MODULES by the test."""

from cppo_verl.integration.on_import import on_import


def _shift(logits) -> None:
    honest = logits.token_index

    def late(data, k):
        index = honest(data, k)
        index[:, :k] = index[:, :k].roll(1, 0)
        return index

    logits.token_index = late


on_import("cppo_verl.integration.topk.logits", _shift)
