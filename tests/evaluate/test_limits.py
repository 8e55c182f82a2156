"""Numbers of a run's config.json, which may come from a stranger, do not decide how much memory an evaluation takes."""

import json
import os

import jax
import numpy as np
import pytest

from igpo_jax import config as configuration
from igpo_jax.config import parse
from igpo_jax.data.pipeline import prompt_arrays
from igpo_jax.diffusion.batches import Batching, Requests, complete
from igpo_jax.diffusion.sampler import sample
from igpo_jax.evaluate.benchmark import prompts_of
from igpo_jax.evaluate.protocol import base_evaluation, run_evaluation
from run_configs import tiny


@pytest.mark.slow
def test_prompts_are_padded_to_the_smallest_bucket_that_holds_them_and_cut_to_the_largest(opened):
    model, experiment = opened
    problems, config = experiment.test_data.problems[:4], base_evaluation()
    longest = max(len(model.tokenizer.encode(problem.question)) for problem in problems)
    for buckets, length in (((1, longest, longest + 3, 1 << 16), longest), ((1 << 16,), 1 << 16), ((2, 3), 3)):
        config.update({"prompt_buckets": buckets, "chat": False})
        found = prompts_of(model, config, problems)
        whole = {"exclude_answer": False, "overflow": "cut", "completion_length": 8}
        expected = prompt_arrays(problems, model.tokenizer, prompt_length=buckets[-1], **whole)[1]
        assert found.tokens.shape == (4, length) and found.trace.shape == (4, 1)
        assert (found.tokens == expected.tokens[:, -length:]).all() and (found.problem_id == expected.problem_id).all()
    config.update({"prefix": "12", "prompt_buckets": (longest, longest + 2)})
    assert prompts_of(model, config, problems).tokens.shape == (4, longest + 2)


@pytest.mark.slow
@pytest.mark.parametrize("devices, rows", [(1, 3), (2, 4)])
def test_a_batch_has_no_more_rows_than_there_are_completions(devices, rows, opened, mesh_of):
    model, experiment = opened
    config = base_evaluation()
    config.update({"prompt_buckets": (9,), "chat": False})
    prompts, decode = prompts_of(model, config, experiment.test_data.problems[:3]), experiment.config.evaluation.decode
    requests = Requests.blank(prompts, np.zeros(3, np.uint32), model.config, decode)
    sampled, mesh = [], mesh_of((devices, 1, 1))

    def watched(params, tokens, *rest):
        sampled.append(tokens.shape)
        return sample(params, tokens, *rest)

    params = jax.tree.map(np.asarray, model.params)
    with jax.set_mesh(mesh):
        key, batching = jax.random.key(0), Batching(mesh, 1 << 16, (9,))
        [(order, done)] = complete(params, requests, key, model.config, decode, batching, sampler=watched)
    assert sampled == [(rows, 9)] and done.tokens.shape == (3, decode.completion_length) and sorted(order) == [0, 1, 2]


HUGE = {
    "data__prompt_buckets": (9, 300_000_000), "sampler__completion_length": 1 << 20, "evaluation__completion_length": 1 << 20,
    "sampler__steps": 1 << 20, "evaluation__steps": 1 << 20, "evaluation__batch_size": 200_000_000, "evaluation__problems": 10**9,
    "sft__batch_size": 10**8, "rl__prompts": 10**8, "rl__group_size": 10**8, "task__test_problems": 10**9, "task__rl_problems": 10**9,
    "tokenizer__vocab_size": 1 << 30, "reward__workers": 10**6,
}  # fmt: skip


@pytest.mark.parametrize("key", HUGE)
def test_huge_numbers_are_refused_before_memory_is_allocated(key, tmp_path):
    with pytest.raises(
        ValueError, match=rf"{key.rpartition('__')[2]}=.* must be .*at most|{key.rpartition('__')[2]}=.* at most"
    ):
        parse(tiny(**{key: HUGE[key]}))
    (tmp_path / "config.json").write_text(json.dumps(configuration.to_json(tiny(**{key: HUGE[key]}))))
    with pytest.raises(ValueError, match=rf"config.json cannot be read: .*{key.rpartition('__')[2]}=.* at most") as raised:
        run_evaluation(str(tmp_path), None)
    assert "\n" not in str(raised.value)


def test_an_evaluation_starts_at_most_a_process_per_cpu_for_a_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(configuration.to_json(tiny(reward__workers=1000))))
    assert run_evaluation(str(tmp_path), None).reward.workers == max(2, os.cpu_count())
