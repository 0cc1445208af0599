"""Acceptance of this package on a machine: stages that measure, and a table of predicted, measured, limit, verdict.

In come a machine and, if wanted, a recipe and a model; out go results that a killed selftest goes on from, and a page
that can be attached to a bug report. ``stages`` lists what there is, ``session`` runs it, ``report`` writes it down.
Stages compute in processes of their own, so that neither a crash nor a full device ends the selftest.
"""
