"""Reading a run's log and showing it: ``logs`` and ``settings`` read, ``summary`` picks the numbers, ``figures`` draws
(with ``marks`` and ``style``; ``svg`` for the page), ``page`` writes (with ``template``).

Nothing here imports torch or verl, so a report can be made on any machine that holds the log. Left out on purpose:
smoothing of runs short enough to show every step, and the comparison of several runs.
"""
