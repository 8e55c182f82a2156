"""A comparison of samplers writes into its own folder only."""

import json

import pytest

from igpo_jax.evaluate.benchmark import run_benchmark
from igpo_jax.evaluate.generations import find_files
from igpo_jax.evaluate.protocol import base_evaluation, benchmark
from igpo_jax.evaluate.samplers import compare_samplers
from igpo_jax.tasks import arithmetic


@pytest.mark.parametrize("name", ["exact", "fast"])
def test_a_link_out_of_the_folder_is_refused(name, opened, tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "sums.jsonl").write_text("private")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / name).symlink_to(tmp_path / "victim")
    model, experiment = opened
    config = base_evaluation()
    decode = experiment.config.evaluation.decode
    config.update({"prompt_buckets": (9,), "chat": False, "batch_size": 8})
    config.decode.update({key: getattr(decode, key) for key in config.decode} | {"cache": "dual"})
    config.benchmarks.sums = benchmark(arithmetic.defaults(slots=2, test_problems=4))
    with pytest.raises(ValueError, match=f"evaluation/{name} leads out of .*evaluation; remove this link"):
        compare_samplers(model, config, "sums", experiment.test_data.problems[:2], tmp_path / "evaluation")
    assert (tmp_path / "victim" / "sums.jsonl").read_text() == "private"


def test_texts_outside_of_an_evaluation_are_not_graded_again(tmp_path):
    (tmp_path / "private.jsonl").write_text("private")
    (tmp_path / "evaluation").mkdir()
    protocol = {"protocol": {"sums": {"task": {"name": "math", "answer": "any"}}}}
    (tmp_path / "evaluation" / "protocol.json").write_text(json.dumps(protocol))
    (tmp_path / "evaluation" / "sums.jsonl").symlink_to(tmp_path / "private.jsonl")
    with pytest.raises(ValueError, match="sums.jsonl leads to .*private.jsonl, outside of .*evaluation; remove the link"):
        find_files(tmp_path / "evaluation", [])


def test_a_folder_that_looks_like_the_cache_of_the_hub_leads_to_no_other_texts(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "own.jsonl").write_text("private")
    evaluation = tmp_path / "stranger" / "snapshots" / "evaluation"
    evaluation.mkdir(parents=True)
    (tmp_path / "stranger" / "blobs").symlink_to(tmp_path / "private")
    (evaluation / "protocol.json").write_text(json.dumps({"protocol": {"sums": {"task": {"name": "math"}}}}))
    (evaluation / "sums.jsonl").symlink_to("../../blobs/own.jsonl")
    with pytest.raises(ValueError, match="sums.jsonl leads to .*private/own.jsonl, outside of"):
        find_files(evaluation, [])


def test_results_behind_a_link_are_not_replaced_by_a_part_of_them(opened, tmp_path):
    (tmp_path / "sums.jsonl").symlink_to(tmp_path / "elsewhere")
    model, experiment = opened
    config = base_evaluation()
    config.benchmarks.sums = benchmark(arithmetic.defaults(slots=2, test_problems=4))
    with pytest.raises(ValueError, match="sums.jsonl is a symbolic link; put the file itself in its place"):
        run_benchmark(model, config, "sums", experiment.test_data.problems[:2], tmp_path)
