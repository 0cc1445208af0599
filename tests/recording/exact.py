"""Whether the recorded gates of a run follow from its records, bit by bit."""

from pathlib import Path

from cppo_verl.recording import batches, candidates, files, replay
from cppo_verl.recording.record import Header


def replays_exactly(run: Path) -> dict[int, tuple[Header, int]]:
    """By step, its header and how many tokens were compared; a token that differs fails."""
    found = {}
    for record in files.read_run(run):
        result = replay.replay(batches.batches([record]), [candidates.recorded(record.header)])
        assert result.tallies[0].differs == 0, f"step {record.header.step}: {record.header.rule}"
        found[record.header.step] = (record.header, result.recorded_tokens)
    return found
