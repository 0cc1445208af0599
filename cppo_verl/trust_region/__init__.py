"""The science: from log-probs to a gated loss. Torch and numpy only; no verl, no files, no processes.

In come log pi, log mu, advantages and a mask, each (batch, length); out go a gate a token, the loss, and numbers for
a logger. The data's way: ``tokens`` -> ``divergence`` (or ``topk``) -> ``rules``, which use ``schedule`` (position
weights) and ``budget`` (prefix budgets) -> ``gate`` -> ``surrogate`` -> ``metrics``; ``loss`` is all of it in one call.
Beside it stand ``advantage`` (before the loss) and ``bound`` (Theorem 1, for the logger). ``knobs`` are what users set.
"""
