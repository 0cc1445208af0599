"""A start-up that died because the machine was busy, told from one that would die again."""

from pathlib import Path

from cppo_verl.launch import supervise

# The last error of a start-up that missed a deadline of Ray's or vLLM's own; nothing that a config could cause.
SIGNS = (
    "RPC error: Deadline Exceeded",
    "Timed out while waiting for GCS to become available",
    "Failed to connect to GCS within",
    "The current node timed out during startup",
    "seconds while waiting for node to startup",
    "Timed out waiting for engine core processes to start",
)


class SlowStart(supervise.RunFailed):
    """The run missed a deadline before its first step; ``error`` is the line that says so."""

    def __init__(self, failed: supervise.RunFailed, error: str):
        super().__init__(*failed.args)
        self.error = error


def missed_deadline(console: Path) -> str | None:
    """The last error in the console log, if it is one of ``SIGNS``."""
    text = supervise.tail(console)
    line = supervise.last_error(text)
    return text[line].strip() if line is not None and any(sign in text[line] for sign in SIGNS) else None
