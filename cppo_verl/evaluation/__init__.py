"""Avg@N of a model on verl data files, with the prompts, the sampling and the scores of verl's own validation.

checkpoint (find, merge) -> problems (read) -> engine (tokenise, generate) -> store (parts on disk) -> scoring ->
estimates (means, standard errors) -> tables. verl and vLLM are imported inside functions, where they are needed.
"""


class EvaluationError(Exception):
    """Something the user can put right; the message says what and how."""
