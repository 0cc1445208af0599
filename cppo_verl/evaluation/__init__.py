"""Avg@N of a model on verl data files, with the prompts, the sampling and the scores of verl's own validation.

checkpoint (find, merge) -> problems (read) -> engine (tokenise, generate) -> store (parts on disk) -> scoring ->
tables (means, standard errors). verl and vLLM are imported inside functions, where they are needed.
"""

from cppo_verl.errors import UserError


class EvaluationError(UserError):
    """Something the user can put right; the message says what and how."""
