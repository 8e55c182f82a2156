"""All parsers of external input, each with valid files. On a hostile file, a parser must return or raise one ValueError of a
single line that names the file, within limits on time and memory."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
import openai
import pyarrow
import pyarrow.parquet
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordWriter

from igpo_jax import config as configuration
from igpo_jax.api import DiffusionLM
from igpo_jax.chat import encode_chat
from igpo_jax.compare.numbers import compare_runs
from igpo_jax.config import base_config
from igpo_jax.data.pipeline import prompt_arrays
from igpo_jax.evaluate.benchmark import compare
from igpo_jax.grading import reference_code as released
from igpo_jax.grading.answers import extract
from igpo_jax.model import lora
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig, init
from igpo_jax.report.page import write_report
from igpo_jax.rewrite.__main__ import judge_replies, read_replies
from igpo_jax.rewrite.card import make_card
from igpo_jax.rewrite.endpoint import Endpoint, ask_all
from igpo_jax.run.experiment import read_run_config
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.tasks import arithmetic, countdown, math, sudoku, words
from igpo_jax.tasks.problem import Problem, problems_fingerprint
from igpo_jax.tasks.sources import Record, load_sources
from igpo_jax.tokenizers import load_tokenizer, train_sentencepiece
from igpo_jax.weights.folders import check_tensors
from igpo_jax.weights.huggingface import folder_model_config, llada_config, model_config, read_model_json, tensor_names
from igpo_jax.weights.peft import export_peft, import_peft
from igpo_jax.weights.safetensors_files import stored_tensors
from qwen_files import write_small
from tokenizer_files import write_tokenizer

SECONDS, MEMORY = 5.0, 500 * 2**20  # CPU seconds per input; bytes above the previous peak
TEXT = "What is 2 + 2? \\boxed{4} ünïcode 答え 🎉"


@dataclasses.dataclass(frozen=True)
class Parser:
    """write: makes the files in a folder. read: parses them. mutable: names of the files to mutate (default: all).
    total: every input must be accepted."""

    name: str
    write: Callable[[pathlib.Path], None]
    read: Callable[[pathlib.Path], Any]
    mutable: tuple[str, ...] = ()
    total: bool = False


class Finding(AssertionError):
    """Error for any outcome of a parser other than a result or one clear ValueError."""


class Attack:
    """Runs a parser on a folder of its valid files in which one file at a time is replaced."""

    def __init__(self, parser: Parser):
        self.parser = parser
        self._own = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.folder = pathlib.Path(self._own.name)
        parser.write(self.folder)
        parser.read(self.folder)  # valid files must be accepted
        files = {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}
        names = parser.mutable or tuple(files)
        self.valid = {name: files[name].read_bytes() for name in names}

    def __call__(self, name: str, content: bytes) -> bool:
        """Returns whether the parser accepts the file with this content.

        Raises:
            Finding: the parser neither accepts nor rejects it properly.
        """
        file = self.folder / name
        file.write_bytes(content)
        begin, held = time.process_time(), _most_held()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.parser.read(self.folder)
            return True
        except ValueError as error:
            message = str(error)
            if self.parser.total or "\n" in message:
                raise Finding(f"{type(error).__name__}: {message[:500]!r}") from error
            if str(self.folder) not in message and not any(pathlib.Path(known).name in message for known in self.valid):
                raise Finding(f"names no file: {message[:500]!r}") from error
            return False
        except BaseException as error:
            raise Finding(f"{type(error).__name__}: {str(error)[:500]}") from error
        finally:
            file.write_bytes(self.valid[name])
            took, more = time.process_time() - begin, _most_held() - held
            if took > SECONDS or more > MEMORY:
                raise Finding(f"{took:.1f} s, {more / 2**20:.0f} MiB")


def _most_held() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Model folders and tokenizers

SHAPE = ModelConfig(vocab_size=336, mask_id=323, eos_id=321, width=16, layers=2, heads=2, kv_heads=2, mlp_width=16)
MESH = make_mesh(devices=jax.devices()[:1])


def _write_model(folder: pathlib.Path) -> None:
    ids = write_tokenizer(folder)
    cfg = dataclasses.replace(SHAPE, mask_id=ids["<|mdm_mask|>"], eos_id=ids["<|endoftext|>"])
    _write_weights(folder, llada_config(cfg, 64), cfg, "blocks.0")


def _write_qwen(folder: pathlib.Path) -> None:
    """Writes a model of the family with the most features: biases, a shift, and a tokenizer of four files."""
    ids = write_small(folder)
    values = {
        "architectures": ["DreamModel"], "model_type": "Dream", "vocab_size": 336, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "use_sliding_window": False, "tie_word_embeddings": False, "eos_token_id": [ids["<|im_end|>"]],
        "mask_token_id": None, "rope_scaling": None, "layer_types": ["full_attention"] * 2,
    }  # fmt: skip
    _write_weights(folder, values, model_config(values, special=ids), "layers.0")


def _write_weights(folder: pathlib.Path, values: dict, cfg: ModelConfig, in_first: str) -> None:
    params = init(jax.random.key(0), cfg)
    (folder / "config.json").write_text(json.dumps(values))
    tensors = {}
    for path, names in tensor_names(values, cfg).items():
        parameter = params
        for key in path:
            parameter = parameter[key]
        for name, tensor in zip(names, parameter if path[0] == "blocks" else [parameter], strict=True):
            turned = tensor.T if tensor.ndim == 2 and path != ("embedding",) else tensor
            tensors[name] = np.ascontiguousarray(turned)
    first = {name: tensor for name, tensor in tensors.items() if in_first in name}
    shards = {"model-1.safetensors": first, "model-2.safetensors": {k: v for k, v in tensors.items() if k not in first}}
    for name, shard in shards.items():
        safetensors.numpy.save_file(shard, folder / name)
    index = {"weight_map": {name: file for file, shard in shards.items() for name in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _read_model(folder: pathlib.Path) -> None:
    cfg = folder_model_config(folder)
    check_tensors(folder, read_model_json(folder), cfg, MESH)
    configuration.with_tokenizer(cfg, load_tokenizer(folder, cfg.mask_id), folder)


def _write_adapters(folder: pathlib.Path) -> None:
    settings = LoraConfig(2, 4.0, ("query", "down"))
    export_peft(lora.init(jax.random.key(0), SHAPE, settings), settings, folder)


def _use(tokenizer) -> None:
    ids, offsets = tokenizer.encode_with_offsets(TEXT)
    assert len(ids) == len(offsets) and all(0 <= begin <= end <= len(TEXT) for begin, end in offsets)
    assert isinstance(tokenizer.decode(ids), str)
    for id in (*tokenizer.encode(TEXT)[:5], 0, tokenizer.vocab_size - 1, tokenizer.vocab_size):
        assert isinstance(tokenizer.piece(id), str)
    if all(tokenizer.special_id(name) is not None for name in tokenizer.chat.markers):
        encode_chat(tokenizer, [{"role": "user", "content": TEXT}])


def _write_pieces(folder: pathlib.Path) -> None:
    train_sentencepiece([TEXT], folder / "tokenizer.model", kind="unigram", vocab_size=330)


# Problems

ROWS: dict[str, list[dict]] = {
    "gsm8k.jsonl": [{"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"}, {"question": "2 + 2?", "answer": "4\n#### 4"}],
    "math.json": [{"id": "a", "problem": "1 + 1?", "answer": "2", "solution": "So \\boxed{2}."}, {"problem": "2?", "answer": "2"}],
    "metamath.json": [
        {"type": "GSM_AnsAug", "query": "1 + 1?", "response": "It is 2.\n#### 2\nThe answer is: 2"},
        {"type": "MATH_AnsAug", "query": "2 + 2?", "response": "It is \\boxed{4}. The answer is: 4"},
    ],
    "openr1.parquet": [
        {"uuid": "a", "problem": "1 + 1?", "answer": "2", "generations": ["<think>\\boxed{2}", "3"], "correctness_math_verify": [True, False]}
    ],
    "jsonl.jsonl": [{"id": 1, "question": "1 + 1?", "answer": "2", "solution": "It is 2."}],
    "amc.array_record": [{"problem": "1 + 1?", "answer": 2.0}],
}  # fmt: skip
FIELDS = {"id": "id", "question": "question", "answer": "answer", "solution": "solution"}


def write_problems(folder: pathlib.Path) -> None:
    for name, rows in ROWS.items():
        file = folder / name
        match file.suffix:
            case ".jsonl":
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            case ".json":
                file.write_text(json.dumps(rows))
            case ".parquet":
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
            case _:
                writer = ArrayRecordWriter(str(file), "group_size:1")
                for row in rows:
                    writer.write(json.dumps(row).encode())
                writer.close()
    (folder / "countdown.jsonl").write_text('{"id": 1, "numbers": [1, 2, 3], "target": 6, "reference_expression": "1+2+3"}\n')
    (folder / "sudoku.jsonl").write_text('{"id": 1, "puzzle": "0234341221434321", "solution": "1234341221434321"}\n')
    (folder / "sudoku.csv").write_text("Puzzle,Solution\n0234341221434321,1234341221434321\n")


class _Characters:
    """Tokenizer with one token per character."""

    vocab_size, pad_id, eos_id, mask_id, eot_id = 0x110000, 0, 0, 1, None

    def encode(self, text):
        return [ord(character) for character in text]

    def encode_with_offsets(self, text):
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def special_id(self, token):
        return None

    def decode(self, ids):
        return "".join(map(chr, ids))


PUZZLE_FILES = ("countdown.jsonl", "sudoku.jsonl", "sudoku.csv")


def _read_problems(name: str):
    kind = name.partition(".")[0]

    def read(folder: pathlib.Path) -> None:
        if kind in ("countdown", "sudoku"):
            task = {"countdown": countdown, "sudoku": sudoku}[kind]
            problems = task.load(base_config(**task.defaults(test=str(folder / name))).task, "test", 0)
        else:
            load_sources(f"{kind}:{folder / name}", FIELDS)
            problems = math.load(base_config(**math.defaults(test=f"{kind}:{folder / name}")).task, "test", 0)
        problems_fingerprint(problems)
        with contextlib.suppress(ValueError):  # raised if they do not fit
            lengths = {"prompt_length": 10**4, "completion_length": 10**4}
            prompt_arrays(problems[:4], _Characters(), **lengths, exclude_answer=True, overflow="drop")

    return read


# Folders of runs and evaluations


def write_run(folder: pathlib.Path) -> None:
    config = base_config(**arithmetic.defaults())
    (folder / "config.json").write_text(json.dumps(configuration.to_json(config)))
    numbers = (
        "reward/first_try",
        "groups/all_wrong_before",
        "hint/rescue_rate",
        "time/total",
        "sampler/prompts",
        "sampler/rows",
    )
    metrics = [{"step": 1, "stage": "sft", "sft/loss": 2.0, "time/total": 1.0, "heldout/loss": 1.0}]
    metrics += [{"step": step, "stage": "rl", **dict.fromkeys(numbers, 0.5)} for step in (2, 3)]
    metrics += [{"step": 3, "stage": "rl", "eval/accuracy": 0.5, "eval/problems": 4.0}]
    rollout = {
        "step": 2, "problem_id": 7, "try": "hinted", "question": "2 + 2?", "answer": "4", "text": "# 4", "trace": "# 4", "extracted_answer": "4",
        "tokens": ["#", " 4"], "unmask_step": [-1, 0], "hint": [True, False], "end": 2, "reward": 1.0, "rescued": True, "correct": True,
    }  # fmt: skip
    rollouts = [rollout, rollout | {"rescued": False, "try": "first", "hint": [False, False]}]
    for name, rows in (
        ("metrics.jsonl", metrics),
        ("rollouts.jsonl", rollouts),
        ("evaluations.jsonl", [{"step": step, "stage": "rl", "correct": [0, 1, 1, 0]} for step in (2, 3)]),
    ):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"updates": 3, "wall_seconds": {"sft": 1.0, "rl": 2.0}, "device": "x", "commit": "c"}
    (folder / "result.json").write_text(json.dumps(result | {"versions": {"igpo_jax": "0", "jax": "0"}}))


def _read_run_config(folder: pathlib.Path) -> None:
    config = read_run_config(folder)
    with contextlib.suppress(ValueError):  # names a key; see configurations.py
        configuration.parse(config)


def _write_runs(folder: pathlib.Path) -> None:
    for arm in ("grpo", "igpo"):
        (folder / "seed-0" / arm).mkdir(parents=True)
        write_run(folder / "seed-0" / arm)


def _write_evaluations(folder: pathlib.Path) -> None:
    protocol = {"draws": 1, "problems": 2, "task": {"name": "math"}, "decode": {"steps": 2}}
    for name in ("one", "other"):
        (folder / name).mkdir()
        card = {"benchmarks": {"math500": {"problems": 2}}, "protocol": {"math500": protocol}}
        (folder / name / "card.json").write_text(json.dumps(card))
        rows = [{"id": id, "completions": [{"correct": id == name, "text": "4"}]} for id in ("one", "two")]
        (folder / name / "math500.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# Replies of a rewriting endpoint

RECORD = Record("p0", "1 + 1?", "2", "It is \\boxed{2}.", ((13, 14),), "It is \\boxed{2}.")
REPLY = {
    "id": "p0", "text": "\\boxed{2}", "refused": False, "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 2,
    "attempts": 1,
}  # fmt: skip
COMPLETION = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "\\boxed{2}", "refusal": None}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}  # fmt: skip


@dataclasses.dataclass
class _Verdict:
    reward: float = 1.0
    outcome: str = "ok"


def _judge(replies: list[dict]) -> None:
    by_id = {reply["id"]: reply for reply in replies}
    outcomes = judge_replies([RECORD], by_id, "box", lambda answers: [_Verdict() for _ in answers])
    card = make_card(
        outcomes={outcomes[0][0]: 1}, kept=[], replies=[by_id[id] for id in by_id if id == RECORD.id], unanswered={}
    )
    json.dumps([card, outcomes], ensure_ascii=False).encode()


def _read_replies(folder: pathlib.Path) -> None:
    with (folder / "replies.jsonl").open("a+b") as file:
        _judge(read_replies(file))


def _read_completion(folder: pathlib.Path) -> None:
    """Serves the file as the body of the endpoint's reply."""
    replies, body = [], (folder / "completion.json").read_bytes()
    # openai's own HTTP library: httpx, or httpx2 from openai 3.57 on.
    http = importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])

    async def answer(transport, request):
        return http.Response(200, headers={"Content-Type": "application/json"}, content=body, request=request)

    with mock.patch.object(http.AsyncHTTPTransport, "handle_async_request", answer):
        endpoint = Endpoint(address="http://localhost/v1", model="m", key="k", timeout=5.0, retries=0)
        unanswered, gone = ask_all([("p0", [{"role": "user", "content": "x"}])], replies.append, endpoint, requests=1)
    assert not gone and len(replies) + len(unanswered) == 1
    assert all("\n" not in reason and len(reason) < 300 for reason in unanswered.values())
    file = io.BytesIO("".join(json.dumps(reply) + "\n" for reply in replies).encode())
    file.name = "replies.jsonl"
    _judge(read_replies(file))


# Text from models and users


def _read_answer(folder: pathlib.Path) -> None:
    text = (folder / "answer.txt").read_bytes().decode("utf-8", "replace")
    for rule in ("box", "number", "any"):
        assert isinstance(extract(text, rule), str | None)
    problem = Problem("p", "", "2", "", (), "")
    assert math.reward(problem, text, reference_code=True) in (0.0, 1.0)
    assert 0 <= released.format_reward(text) <= 0.75
    assert words.reward(problem, text) in (0.0, 1.0) and arithmetic.reward(problem, text) in (0.0, 1.0)
    assert 0 <= countdown.reward(dataclasses.replace(problem, answer="1 2 3 -> 6"), text) <= 1
    assert 0 <= sudoku.reward(dataclasses.replace(problem, answer="0234341221434321 -> 1234341221434321"), text) <= 1


def _read_template(folder: pathlib.Path) -> None:
    text = (folder / "template.txt").read_bytes().decode("utf-8", "replace")
    if "[MASK" not in text:
        return
    try:
        ids = DiffusionLM(SHAPE, {}, _Characters(), MESH).encode_template(text)
    except ValueError as error:
        assert "[MASK" in str(error), error
    else:
        assert SHAPE.mask_id in ids


def _text(name: str, text: str):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def _lines(name: str, row: dict):
    return _text(name, json.dumps(row) + "\n" + json.dumps(row | {"id": "p1"}) + "\n")


PARSERS = [
    Parser("model", _write_model, _read_model),
    Parser("weights", _write_model, stored_tensors, ("model-1.safetensors", "model.safetensors.index.json")),
    Parser("model Dream", _write_qwen, _read_model),
    Parser("adapters", _write_adapters, lambda folder: import_peft(folder, SHAPE)),
    Parser("tokenizer.json", write_tokenizer, lambda folder: _use(load_tokenizer(folder, 323))),
    Parser("vocab.json", write_small, lambda folder: _use(load_tokenizer(folder, 303))),
    Parser("tokenizer.model", _write_pieces, lambda folder: _use(load_tokenizer(folder))),
    *(Parser(f"problems {name}", write_problems, _read_problems(name), (name,)) for name in (*ROWS, *PUZZLE_FILES)),
    Parser("config.json", write_run, _read_run_config, ("config.json",)),
    Parser("report", write_run, write_report, ("config.json", "metrics.jsonl", "rollouts.jsonl", "result.json")),
    Parser("comparison", _write_runs, lambda folder: compare_runs(folder, ["grpo", "igpo"], [0])),
    Parser("evaluations", _write_evaluations, lambda folder: compare(folder / "one", folder / "other")),
    Parser("replies", _lines("replies.jsonl", REPLY), _read_replies),
    Parser("endpoint", _text("completion.json", json.dumps(COMPLETION)), _read_completion, total=True),
    Parser("answers", _text("answer.txt", "<answer>\\boxed{2}</answer>\n#### 2"), _read_answer, total=True),
    Parser("templates", _text("template.txt", "The answer is [MASK:4] because"), _read_template, total=True),
]  # fmt: skip
