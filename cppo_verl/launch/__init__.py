"""Starts a run and guards it: from a command line to a child process that leaves nothing behind.

In come Hydra overrides and a run directory; out go logs, whole checkpoints and an error that says why. ``command_line``
looks at the overrides first, ``exposure`` keeps the run on loopback, ``checkpoints`` finds one to resume from,
``gitstate`` keeps which code ran, ``supervise`` starts and watches. Neither torch nor verl is imported here.
"""
