"""Which tests start the stack, and generated cases.

``stack`` marks what starts Ray, vLLM, ranks of verl's engine, a command that imports verl in a process of its own, or
pip (5 to 20 s each): all of tests/e2e, whatever needs its model, and what says so itself. ``run_scripts/test.sh fast``
runs everything else. With several processes (``--dist loadgroup``) a file's tests stay together, and so do those that
read one run of the stack.

Generated cases are the same in every run; CPPO_VERL_FUZZ=N draws new ones (and N times as many in test_fuzz).
"""

import gc
import os
import sys

import pytest
from hypothesis import settings

import tests.composed_once  # noqa: F401

settings.register_profile("repeatable", deadline=None, derandomize="CPPO_VERL_FUZZ" not in os.environ)
settings.load_profile("repeatable")
gc.disable()  # until the tests begin: what their modules import stays, so that no search for garbage finds any


# What is made once, and the longest: whoever reads it runs in one process, and they begin. The second needs no model,
# which the first makes; the third goes to the first's process with it (xdist keeps two tests ahead).
LONGEST = (
    "resumed",
    "tests/e2e/test_start_ray.py",
    "tests/e2e/test_selftest.py",
    "walked_with_lora",
    "own_rule",
    "tests/reporting/test_paper.py",
    "tests/recipe/test_recipes.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in item.path.parts or "work" in item.fixturenames:
            item.add_marker("stack")
        shared = [name for name in LONGEST if name in item.fixturenames]
        item.add_marker(pytest.mark.xdist_group(shared[0] if shared else item.nodeid.partition("::")[0]))
    if hasattr(config, "workerinput"):
        order = {name: i for i, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.get_closest_marker("xdist_group").args[0], len(order)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else an extension module takes at exit what it still holds for leaks


@pytest.fixture
def registries():
    """What rules from outside leave in a process, as it was before. Called, it makes it so at once."""
    from cppo_verl.trust_region import extensions, rules

    modules = set(sys.modules)
    held = [rules.RULES, rules.CAPABILITIES]
    if "verl.trainer.ppo.core_algos" in sys.modules:
        held.append(sys.modules["verl.trainer.ppo.core_algos"].POLICY_LOSS_REGISTRY)
    before = [dict(registry) for registry in held]

    def forget() -> None:
        extensions.load_installed.cache_clear()
        for registry, kept in zip(held, before, strict=True):
            registry.clear()
            registry.update(kept)
        for name in set(sys.modules) - modules:
            if "own" in name:
                del sys.modules[name]

    forget()
    yield forget
    forget()
