"""Reading runs' logs and showing them; nothing here imports torch or verl, so any machine that holds the logs will do.

One run: ``logs`` (with ``columns``) and ``settings`` read, ``summary`` picks the numbers, ``figures`` draws (with
``marks`` and ``style``; ``svg`` for the page), ``page`` writes (with ``template``).

Many runs: ``study`` reads, ``labels`` says which run is what, ``scores`` counts as the paper does. ``outcomes`` puts a
model's methods side by side, ``findings`` and ``comparison`` say it in words and tables, with ``intervals``. ``tables``
and ``curves`` (with ``ablations`` and ``rollouts``) are the paper's tables and figures as data, ``pictures`` draws and
``many`` writes. Left out on purpose: p-values, and smoothing of anything but training metrics.
"""
