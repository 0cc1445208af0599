"""``cppo-verl inspect``: one page that shows what the trust region did to the tokens of a run's records.

``chunks`` packs a response into bytes, ``page`` writes the page around them; what the reader's browser runs lies in
``assets``. Reads ``recording`` alone; nothing here starts or changes a run.
"""
