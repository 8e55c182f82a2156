"""A run whose microbatches have prompt buckets of their own learns what a run with one bucket learns."""

import pytest

from igpo_jax.run.experiment import open_experiment
from igpo_jax.run.metrics import read_rows
from igpo_jax.stages import rl
from igpo_jax.stages.training import train
from run_configs import tiny
from run_log import untimed


@pytest.mark.slow
def test_a_run_with_parts_learns_what_a_run_with_one_learns(tmp_path, monkeypatch):
    changes = {"rl__iterations": 3, "mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    changes["rl__microbatches"] = 2
    widths, split = [], rl.split_by_length

    def watched(*arguments):
        parts = split(*arguments)
        widths.append([part.prompt.shape for part in parts])
        return parts

    monkeypatch.setattr(rl, "split_by_length", watched)
    for buckets in ((9,), (6, 9)):
        experiment = open_experiment(tiny(data__prompt_buckets=buckets, **changes), tmp_path / str(len(buckets)))
        experiment.rl_data.prompts.prompt_mask[::2, :3] = False  # every second prompt is shorter
        train(experiment)
    assert widths[:3] == [[(8, 9)]] * 3 and {shape for parts in widths[3:] for shape in parts} == {(4, 6), (4, 9)}
    one, parts = (untimed(tmp_path / name) for name in ("1", "2"))
    assert len(one) == len(parts) and any(row.get("policy/grad_norm") for row in one)
    for row, expected in zip(parts, one, strict=True):
        assert row.pop("stage") == expected.pop("stage")
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)
    shown, wanted = (read_rows(tmp_path / name / "rollouts.jsonl") for name in ("2", "1"))
    assert [row["tokens"] for row in shown] == [row["tokens"] for row in wanted]
