"""python -m igpo_jax.lm_eval --model igpo_jax --model_args path=DIR --tasks NAME [...]

Runs EleutherAI's lm-evaluation-harness on a model or a training run (docs/lm_eval.md). All flags are those of the harness. This
command makes the model igpo_jax known to the harness, which does not find models of other packages by itself."""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install()

import dataclasses
import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from absl import logging as absl_logging

from igpo_jax.api import ROWS_PER_DEVICE, load
from igpo_jax.chat import chat_text, encode_chat
from igpo_jax.cli import run_command
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.runtime import host
from igpo_jax.runtime.buckets import require_model
from igpo_jax.runtime.checks import present, require, require_draws, require_seed
from igpo_jax.runtime.host import explain_shortage
from igpo_jax.runtime.installation import install_command
from igpo_jax.runtime.mesh import batch_size_divisor
from igpo_jax.runtime.progress import progress

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    missing = f"{error.name} is not installed; igpo_jax.lm_eval needs: {install_command('lm-eval')}"
    if __name__ == "__main__":
        sys.exit(f"error: {missing}")
    raise ImportError(missing) from None
if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

LOADING = {"adapters": str, "dtype": str, "stage": str, "trust": str | list, "allow_nonfinite": bool}
DECODING: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(DecodeConfig)}
ARGUMENTS = {"draws": int, "seed": int, **LOADING, **DECODING}  # name -> type
BATCHES = 4  # that are sampled between two steps of the progress bar

log = logging.getLogger("lm_eval.igpo_jax")  # the harness shows messages of its own loggers


class Chat(str):
    """Text of a conversation in the chat template, with the messages of the conversation. The conversation is encoded from its
    messages: in a plain text, the markers of the chat template would be encoded as ordinary text."""

    messages: list[dict[str, str]]


class DiffusionHarnessModel(LM):
    """A masked diffusion language model for the harness.

    Args:
        path: a model's or a run's folder, or the id of a model in the Hugging Face cache, see `igpo_jax.load`.
        options: draws of `DiffusionLM.score`; seed of `DiffusionLM.score` and `DiffusionLM.generate`; options of
            `igpo_jax.load` (`LOADING`); and settings of the sampler (`DECODING`), by default those of `DiffusionLM.decode`.
            The harness also passes batch_size, max_batch_size and device, which have no effect; JAX selects the devices.

    Raises ValueError if an option is unknown or has the wrong type, or if the model cannot be loaded."""

    def __init__(self, path: str = "", **options: Any):
        super().__init__()
        require(path, "--model_args: path=DIR is missing, the folder of a model or a run")
        options = {name: value for name, value in options.items() if name not in ("batch_size", "max_batch_size", "device")}
        for name, value in options.items():
            known = f"there is no such argument; there are: path, {', '.join(ARGUMENTS)}"
            require(name in ARGUMENTS, f"--model_args: {name}: {known}")
            kind = float | int if ARGUMENTS[name] is float else ARGUMENTS[name]
            wrong = f"--model_args: {name}={value!r} is not of the type {getattr(kind, '__name__', kind)}"
            require(isinstance(value, kind), wrong)
        self._draws, self._seed = options.get("draws", 128), options.get("seed", 0)
        require_draws(self._draws, "--model_args: draws")
        require_seed(self._seed, "--model_args: seed")
        self._decoding = {name: value for name, value in options.items() if name in DECODING}
        loading = {name: value for name, value in options.items() if name in LOADING}
        if isinstance(trust := loading.get("trust"), str):
            loading["trust"] = [trust]
        require_model(str(path), "--model_args: path")
        self._model = load(str(path), **loading, needs="text")
        self._tokenizer = present(self._model.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """Hash of the tokenizer. The harness includes the hash in the names of its stored requests, so that requests stored
        with one tokenizer are not used with another."""
        return self._tokenizer.digest

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns a conversation as a `Chat`. If `add_generation_prompt` is False, the last message is the beginning of the
        assistant's answer. Raises ValueError if the tokenizer lacks a marker of the chat template."""
        messages, begin = (chat_history, "") if add_generation_prompt else (chat_history[:-1], chat_history[-1]["content"])
        encode_chat(self._tokenizer, messages)
        text = Chat(chat_text(messages, self._tokenizer.chat) + begin)
        text.messages = [*messages, {"role": "assistant", "content": begin}] if begin else messages
        return text

    def _encode(self, context: str) -> list[int]:
        if not isinstance(context, Chat):
            return self._tokenizer.encode(context) if context else []
        messages, begin = context.messages, ""
        if messages[-1]["role"] == "assistant":
            messages, begin = messages[:-1], messages[-1]["content"]
        return encode_chat(self._tokenizer, messages) + (self._tokenizer.encode(begin) if begin else [])

    def generate_until(self, requests: Sequence["Instance"], disable_tqdm: bool = False) -> list[str]:
        """Returns the completions of all requests, in order. A completion ends before the first of the request's `until` texts.
        Temperature, lengths and other settings of the sampler are those of the model, not those of the request."""
        contexts = [self._encode(request.args[0]) for request in requests]
        ignored = {f"{name}={value}" for request in requests for name, value in request.args[1].items() if name != "until"}
        if ignored:
            log.warning("settings of tasks that have no effect here: %s; give --model_args", ", ".join(sorted(ignored)))
        texts = [""] * len(requests)
        with progress(len(requests), 0, "completions") as bar:
            for rows in _in_batches(contexts, BATCHES * ROWS_PER_DEVICE * batch_size_divisor(self._model.mesh)):
                done = self._model.generate([contexts[row] for row in rows], seed=self._seed, **self._decoding)
                for row, completion in zip(rows, done, strict=True):
                    texts[row] = _cut(present(completion.text), requests[row].args[1].get("until"))
                    self.cache_hook.add_partial("generate_until", requests[row].args, texts[row])
                bar.update(len(rows))
        return texts

    def loglikelihood(self, requests: Sequence["Instance"], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns (log-likelihood, is greedy) for each request (context, continuation). The log-likelihood is a lower bound in
        nats, estimated by `DiffusionLM.score`. The second value is True if greedy sampling yields the continuation. Greedy
        sampling fills one block of the continuation's length, one token per step, at temperature 0. Logs the standard errors of
        the estimates."""
        pairs = [self._encode_pair(*request.args) for request in requests]
        greedy = self._greedy(pairs)
        results, errors = [], []
        with progress(len(pairs), 0, "log-likelihoods") as bar:
            for request, (context, continuation), is_greedy in zip(requests, pairs, greedy, strict=True):
                score = self._model.score(context, continuation, draws=self._draws, seed=self._seed)
                results.append((score.log_likelihood, is_greedy))
                errors.append(score.standard_error)
                self.cache_hook.add_partial("loglikelihood", request.args, results[-1])
                bar.update()
        if errors:
            numbers = (len(errors), self._draws, np.mean(errors), max(errors))
            log.info("%d lower bounds from draws=%d: standard errors of %.3g nats on average, at most %.3g", *numbers)
        return results

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encodes a context and its continuation separately. As in the harness's other models, white space at the end of the
        context is moved to the start of the continuation. If the context is a `Chat`, it stays unchanged."""
        if not isinstance(context, Chat):
            text = context.rstrip()
            context, continuation = text, context[len(text) :] + continuation
        return self._encode(context), self._tokenizer.encode(continuation)

    def _greedy(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        found = [False] * len(pairs)
        for length in sorted({len(continuation) for _, continuation in pairs} - {0}):  # an empty one is an error in `score`
            rows = [row for row, (_, continuation) in enumerate(pairs) if len(continuation) == length]
            contexts = list(dict.fromkeys(tuple(pairs[row][0]) for row in rows))
            lengths = dict.fromkeys(("completion_length", "block_length", "steps"), length)
            done = self._model.generate(contexts, seed=self._seed, **self._decoding | lengths | {"temperature": 0.0})
            tokens = {context: completion.tokens.tolist() for context, completion in zip(contexts, done, strict=True)}
            for row in rows:
                found[row] = tokens[tuple(pairs[row][0])] == pairs[row][1]
        return found

    def loglikelihood_rolling(self, requests: Sequence["Instance"], disable_tqdm: bool = False) -> list[float]:
        raise ValueError(
            "igpo_jax does not evaluate tasks of the type loglikelihood_rolling: a perplexity from a bound, with tokens masked in any "
            "order, could not be compared with the perplexities that such tasks report"
        )


if __name__ != "__main__":  # the command imports this module again, under the name by which stored requests find `Chat`
    register_model("igpo_jax")(DiffusionHarnessModel)


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    """Returns the part of a text before the first occurrence of any of the texts `until`."""
    for end in [until] if isinstance(until, str) else until or ():
        text = text.partition(end)[0] if end else text
    return text


def _in_batches(contexts: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    """Yields the indices of all contexts in batches, longest contexts first. Each batch except the last has at least `size`
    indices. Equal contexts are in one batch, so that `generate` draws different noise for each of them."""
    order = sorted(range(len(contexts)), key=lambda row: (-len(contexts[row]), contexts[row]))
    batch: list[int] = []
    for _, rows in itertools.groupby(order, key=lambda row: contexts[row]):
        batch += rows
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def main(_) -> None:
    from lm_eval.__main__ import cli_evaluate

    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax reports every file at INFO
    try:
        cli_evaluate()
    except Exception as error:
        shortage = explain_shortage(error, "a shorter completion_length")
        if not (shortage or isinstance(error, ValueError | OSError)):
            raise
        sys.exit(f"error: {shortage or error}")


def parse_nothing(arguments: list[str]) -> list[str]:
    """Prepares the process for the devices of this machine, and returns the arguments unchanged. The harness parses them."""
    host.prepare()
    flags.FLAGS(arguments[:1])
    return arguments


if __name__ == "__main__":
    from igpo_jax import lm_eval as own

    run_command(own.main, own.parse_nothing)
