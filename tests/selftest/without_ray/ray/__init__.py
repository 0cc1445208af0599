"""On PYTHONPATH before the real package, as if that were not installed."""

raise ModuleNotFoundError("No module named 'ray'", name="ray")
