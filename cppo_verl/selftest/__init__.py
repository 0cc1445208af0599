"""Acceptance of this package on a machine: stages that measure, and a table of predicted, measured, limit, verdict.

A stage is a pytest file of this folder, ``stage_*.py``, in a process of its own, so that neither a crash nor a full
device ends the selftest. ``session`` runs them, ``plugin`` is what they get from pytest, ``report`` writes the page.
Rules and losses on the device are held against the same code in float64 on the CPU.
"""
