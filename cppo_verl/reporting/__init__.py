"""Reading a run's log and showing it: ``logs`` and ``settings`` read, ``summary`` picks the numbers, ``figures`` draws,
``page`` writes. Nothing here imports torch or verl, so a report can be made on any machine that holds the log.

Left out on purpose: smoothing (every point is a logged number) and the comparison of several runs.
"""
