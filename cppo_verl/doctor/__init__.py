"""Would a run start on this machine, and if not, why: one finding a check, with its remedy.

``software`` looks at what is installed, ``machine`` at GPUs and room, ``inputs`` at the model and the recipe
that were named. ``examine`` runs them all; the commands only print.
"""
