"""What is the user's to mend."""


class UserError(Exception):
    """Something that the user, or the machine, has to mend; the message says what and how.

    ``cppo-verl`` prints the message without a traceback and ends with ``status``.
    """

    status = 1
