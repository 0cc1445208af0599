"""Reading runs' logs and showing them; nothing here imports torch or verl, so any machine that holds the logs will do.

``metrics`` is the one table of what is shown. One run: ``logs`` and ``settings`` read, ``summary`` and ``answers`` pick
the numbers, ``panels`` what is drawn, ``page`` writes. Many runs: ``study`` reads, ``labels`` says which run is what,
``scores`` counts as the paper does, ``comparison`` puts methods side by side, ``tables`` and ``curves`` are the
paper's tables and figures, ``many`` writes. Both draw by ``plots`` and ``pictures`` and write by ``template``, whose
files lie in ``assets``. Left out on purpose: p-values, smoothing of anything but training metrics over many runs.
"""
