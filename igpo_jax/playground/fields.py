"""Initial values of the fields of the playground's page."""

from ml_collections import ConfigDict

from igpo_jax.api import DiffusionLM
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.run.bucket_runs import is_run
from igpo_jax.run.experiment import read_run_config
from igpo_jax.runtime.checks import present
from igpo_jax.tasks import TASKS, load_task

# For models that are not runs
FIELDS = vars(DecodeConfig(completion_length=64, block_length=32, steps=64)) | {"seed": 0, "chat": True}
FIELDS |= {"prompt": "What is 17 + 25?", "template": "The answer is [MASK:4] because two and two are four."}


def begin_with(path: str, model: DiffusionLM, trusted: list[str]) -> dict:
    """Returns the initial values of the page's fields. For a training run, these are the decoding settings of the run's
    evaluations and one of the run's test problems."""
    if not is_run(path):
        return FIELDS
    config = read_run_config(path, trusted)
    fields = FIELDS | vars(model.decode) | {"chat": False, "prompt": "", "template": "[MASK:8]"}
    if config.task.name not in TASKS:  # a user's module is code, which should not run just for an example
        return fields
    try:
        task = ConfigDict(config.task.to_dict() | ({"test_problems": 1} if "test_problems" in config.task else {}))
        problem = load_task(config.task.name).load(task, "test", config.seed)[0]
        trace = model.encode(problem.trace)
        part = len(trace) // 3
        begin, end = (present(model.tokenizer).decode(tokens) for tokens in (trace[:part], trace[2 * part :]))
    except (ValueError, OSError):  # the problem files are not on this machine, or others may not read them
        return fields
    return fields | {"prompt": problem.question, "template": f"{begin}[MASK:{part}]{end}"}
