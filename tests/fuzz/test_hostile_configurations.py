"""Any configuration builds or raises an error that names a key; tests/campaigns/fuzz.py --configs runs more of them."""

import runpy

import pytest

from configurations import CONFIGS, build, generated, starts

NUMBER = 300


@pytest.mark.slow
def test_generated_configurations_build_or_name_a_key():
    outcomes = [build(generated(number)[0]) for number in range(NUMBER)]
    built = outcomes.count("")
    assert 0 < built < NUMBER


@pytest.mark.parametrize("file, variant", starts())
def test_what_they_start_from_builds(file, variant):
    config = runpy.run_path(str(CONFIGS / file))["get_config"](*([variant] if variant else []))
    assert build(config) == ""


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"task.slots": 1}, ["task.slots=1", "[2, 1000]"]),
        ({"task.slots": 2**31 - 1}, ["task.slots=2147483647"]),
        ({"task.test_problems": 0}, ["task.test_problems=0", "at least 1"]),
        ({"tokenizer.vocab_size": 0}, ["tokenizer.vocab_size=0", "at least 1"]),
        ({"task.worked_share": float("nan")}, ["task.worked_share=nan"]),
        ({"seed": True}, ["seed=True", "no int"]),
        ({"seed": 10**30}, ["seed=1000000", "2147483647"]),
        ({"rl.prompts": None}, ["rl.prompts=None", "no int"]),
        ({"data.prompt_buckets": (21, None)}, ["data.prompt_buckets=(21, None)", "no int"]),
        ({"lora.targets": ("query", 1)}, ["lora.targets=('query', 1)", "no str"]),
        ({"mesh": 3}, ["mesh=3", "no dict"]),
        ({"rl.optimizer.b1": "x"}, ["rl.optimizer.b1='x'", "no float"]),
        *(  # float32 cannot hold these numbers, or their products with logits
            ({key: value}, [f"{key.rpartition('.')[2]}={value}", "from 1e-15 to"])
            for value in (1e39, 1e308, 1e-46, float("inf"))
            for key in (
                "evaluation.temperature",
                "sampler.cfg_scale",
                "objective.clip_high",
                "reward.scale",
                "sft.optimizer.learning_rate",
            )
        ),
        (
            {"objective.upper_power": 1e39, "objective.upper_weight": 0.5},
            ["objective.upper_power=1e+39", "must be at most 1"],
        ),
        ({"rl.optimizer.max_grad_norm": 1e39}, ["max_grad_norm=1e+39", "from 1e-15 to"]),
        ({"sft.optimizer.weight_decay": 1e-46}, ["weight_decay=1e-46", "must be 0 or positive, from 1e-15 to"]),
        ({"model.rope_theta": -1.0}, ["model.rope_theta=-1.0", "must be from 1"]),
        ({"objective.upper_power": 2.0}, ["objective.upper_power=2.0", "objective.upper_weight"]),
        ({"sampler.refresh": 2}, ["sampler.refresh=2", "sampler.cache"]),
        ({"sampler.threshold": 0.5}, ["sampler.threshold=0.5", "sampler.commit='threshold'"]),
        ({"evaluation.factor": 2.0}, ["evaluation.factor=2.0", "evaluation.commit='factor'"]),
        ({"sampler.fallback": "most_confident"}, ["sampler.fallback='most_confident'", "sampler.commit"]),
        (
            {"inpainting.policy": "none", "inpainting.chunk_max": 12},
            ["inpainting.policy='none'", "inpainting.chunk_max=12", "leave out unused keys"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_keys_that_cannot_work_or_do_nothing_are_named(changes, words):
    config = runpy.run_path(str(CONFIGS / "arithmetic.py"))["get_config"]()
    with config.ignore_type():
        for key, value in changes.items():
            *sections, last = key.split(".")
            section = config
            for part in sections:
                section = section[part]
            section[last] = value
    message = build(config)
    for word in words:
        assert word in message
