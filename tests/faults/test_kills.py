"""Short tests/campaigns/faults.py: kills at random moments, from the start of training to the end of evaluation."""

import collections
import itertools

import pytest


@pytest.fixture
def faults(campaign):
    return campaign("faults")


def test_kills_come_at_all_moments_with_all_signals(faults):
    kills = list(itertools.chain(*itertools.islice(faults.kills_of_runs(0), 9)))
    planned = {(command, moment) for phase in faults.PHASES for command, moment, _, _ in phase}
    assert {(kill.command, kill.moment) for kill in kills} == planned
    assert len(kills) == 9 * sum(faults.KILLS_OF_PHASE) > 100
    assert collections.Counter(kill.signal.name for kill in kills[:32]) == {
        "SIGKILL": 16, "SIGTERM": 8, "SIGINT": 4, "SIGHUP": 4
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_bit_for_bit_as_undisturbed(faults, tmp_path):
    happened = []
    with faults.Runs(tmp_path) as runs:
        for workdir, kills in ((tmp_path / "undisturbed", []), (tmp_path / "run", next(faults.kills_of_runs(1)))):
            faults.disturbed(runs, kills, workdir, "remembering", lambda kill, what: happened.append(what))
        assert len(happened) >= 8
        assert faults.differences(tmp_path / "run", tmp_path / "undisturbed") == []
        # The comparison detects a change.
        log = tmp_path / "run/metrics.jsonl"
        log.write_text(
            log.read_text().replace('"sft/loss": 0', '"sft/loss": 1', 1).replace('"sft/loss": 2', '"sft/loss": 3', 1)
        )
        assert "metrics.jsonl" in faults.differences(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("commands", [
    "inspect_data:SIGINT", "train:SIGHUP,evaluate:SIGTERM,rewrite:SIGINT",
])  # fmt: skip
def test_signals_at_random_moments_of_commands(commands, campaign):
    """Short tests/campaigns/signals.py, with one signal for each command."""
    assert campaign("signals").main(["--moments=1", f"--commands={commands}"]) == 0
