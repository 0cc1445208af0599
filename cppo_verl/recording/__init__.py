"""What the trust region did to single tokens: records of some responses of a run, and what can be learned from them.

``record`` says what a record holds, ``files`` how it lies on the disk (``RUN/records``, a Parquet file a step),
``draw`` which responses and steps are kept, and ``numbers`` derives D_t, weights, spending and allowance.
``batches`` runs ``candidates`` on the steps of a run: what each would have kept (``replay``), and which thresholds mask
a wanted share (``calibrate``). Rules are those of ``trust_region``. Reading needs no verl and no tokenizer.
"""
