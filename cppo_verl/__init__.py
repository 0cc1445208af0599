"""CPPO (arXiv 2606.10968) and the trust regions it is compared with, as a plug-in for verl.

Importing this package is free: the maths rooms (``divergence``, ``schedule``, ``budget``, ``rules``, ``surrogate``,
``metrics``, ``advantage``, ``bound``) import torch only, and nothing but ``integration`` imports verl.
"""

__version__ = "0.1.0"
