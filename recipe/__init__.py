"""The paper's runs: which rule with which knobs (``methods``), what a run needs (``memory``, ``hours``), and ``plan``.

Standard library only, so that a plan needs neither verl nor torch. The runs themselves are run_scripts/*.sh.
"""
