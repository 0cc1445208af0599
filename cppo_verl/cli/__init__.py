"""The commands, thin: a module each, whose docstring is what ``--help`` says, with ``add_arguments`` and ``run``."""
