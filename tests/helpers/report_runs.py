"""Folders of training runs with made-up logs, for tests of reports."""

import json

from igpo_jax.config import base_config, to_json


def sft_row(step):
    scalars = {"sft/loss": 1 / step, "sft/grad_norm": 1.0, "sft/learning_rate": 1e-3, "time/step": 0.5}
    return {"step": step, "stage": "sft", **scalars}


def rl_row(step):
    keys = [
        "reward/first_try", "reward/final", "groups/all_wrong_before", "groups/all_wrong_after",
        "groups/all_correct", "hint/rescue_rate", "hint/ratio", "hint/tokens", "hint/replaced",
        "policy/kl", "policy/entropy", "policy/clip_fraction", "policy/ratio_mean", "policy/loss",
        "policy/grad_norm", "groups/distinct", "hint/ratio_center", "time/total", "time/rollout",
        "time/reward", "time/score", "time/update",
        "speed/tokens_per_second",
    ]  # fmt: skip
    return {"step": step, "stage": "rl", **{key: 0.5 for key in keys}}


def eval_row(step, stage, accuracy):
    return {"step": step, "stage": stage, "eval/accuracy": accuracy, "eval/problems": 100}


def rollout_row(step, attempt="first", rescued=False, question="1+1=", **others):
    return {
        "step": step, "try": attempt, "problem_id": "p",
        "question": question, "answer": "2", "trace": "1+1=2",
        "tokens": ["2", "<eos>", "<eos>"], "unmask_step": [1, -1 if attempt == "hinted" else 0, 0],
        "hint": [False, attempt == "hinted", False], "reward": 1.0, "correct": True, "outcome": "ok",
        "text": "2", "extracted_answer": "2", "rescued": rescued, "end": 1,
    } | others  # fmt: skip


RUN = [
    *map(sft_row, range(1, 6)),
    eval_row(5, "sft", 0.1),
    *map(rl_row, range(6, 11)),
    eval_row(10, "rl", 0.6),
]


def write_run(folder, rows, rollouts=(), verdicts=(), name="arithmetic", **overrides):
    config = base_config()
    config.update_from_flattened_dict(overrides)
    config = to_json(config)
    config["task"]["name"] = name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "data.json").write_text(json.dumps({"test": "0123"}))
    files = {"metrics": rows, "rollouts": rollouts, "evaluations": verdicts}
    for file, content in files.items():
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder
