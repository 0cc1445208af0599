"""CPPO (arXiv 2606.10968) and the trust regions it is compared with, as a plug-in for verl.

The rooms, from the ground up; each imports only from rooms above it in this list:

    errors           what is the user's to mend
    atomic, jsonlines, presets, estimates  files that appear whole; JSON lines as they were written; the presets' names;
                     means with standard errors
    trust_region     the science: divergences, rules, budgets, gates, loss, metrics; torch and numpy only
    recording        single tokens of a run: records, replay of any rule, thresholds from data
    launch           starts and guards a run
    integration      the plug into verl
    paper            the paper's numbers
    reporting        reads logs: pages, tables, figures
    inspection       reads records: the page of tokens
    evaluation       Avg@N of a checkpoint
    doctor           would a run start on this machine
    selftest         acceptance of a machine
    cli              the commands, thin

Importing this package is free.
"""

__version__ = "0.1.0"
