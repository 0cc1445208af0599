"""What the trust region did to single tokens: records of some responses of a run, and what can be learnt from them.

``record`` says what a record holds, ``files`` how it lies on the disk (``RUN/records``, a Parquet file a step), and
``numbers`` derives D_t, weights, spending and allowance with the rules' own functions. Imports ``trust_region``,
``atomic`` and ``presets`` only; reading needs neither verl nor the tokenizer.
"""
