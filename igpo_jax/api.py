"""Python API that loads a masked diffusion language model to complete prompts, fill blanks in texts, and score completions.

import igpo_jax
model = igpo_jax.load("LLaDA-8B-Instruct")
model.generate(["What is 2 + 2?"], chat=True)[0].text
model.infill(["The answer is [MASK:4] because two and two are four."])[0].text
model.score("2 + 2 =", " 4")
"""

import dataclasses
import functools
import itertools
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh

from igpo_jax import config as configuration
from igpo_jax.chat import completion_text, encode_chat
from igpo_jax.data.pipeline import left_padded
from igpo_jax.diffusion.batches import Batching, Requests, complete
from igpo_jax.diffusion.corruption import Corruption, mask_count, negative_bound
from igpo_jax.diffusion.sampler import sample
from igpo_jax.diffusion.stepwise import Step, sample_stepwise
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model import int8, lora
from igpo_jax.model.fitting import fit_to_devices
from igpo_jax.model.lora import LoraConfig, check_model_divides
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, forward, unembed
from igpo_jax.run.bucket_runs import is_run
from igpo_jax.run.layout import Load, mesh_for_sampling
from igpo_jax.run.restore import restore_run
from igpo_jax.runtime.buckets import require_model
from igpo_jax.runtime.checks import MOST_TOKENS, require, require_draws, require_seed
from igpo_jax.runtime.chips import BFLOAT16_MAJOR, cuda_major
from igpo_jax.runtime.host import prepare_accelerators
from igpo_jax.runtime.mesh import batch_size_divisor, make_mesh, shard_batch, to_host
from igpo_jax.tokenizers import Tokenizer, has_tokenizer, load_tokenizer, warn_of_no_text
from igpo_jax.training.policy import Policy
from igpo_jax.weights.finite import check_finite
from igpo_jax.weights.folders import load_params
from igpo_jax.weights.huggingface import folder_model_config
from igpo_jax.weights.peft import import_peft

BLANK = re.compile(r"\[MASK(?::(\d+))?\]")
BUCKET = 32  # prompts are padded to a multiple of this, so that few programs are compiled
PROBED = 8  # ordinary tokens, and MASKs, in the test of a network's logits
SCORED_ROWS = 16  # masked copies per device in one batch of `score`
ROWS_PER_DEVICE = 8  # completions per device in one batch
TYPICAL_PROMPT = 256  # tokens; the layout of the weights is chosen for prompts of this length

Prompt = str | list[dict[str, str]] | Sequence[int]  # text, a conversation, or token ids
Path = str | os.PathLike
Watch = Callable[[Step], None] | None


@dataclasses.dataclass(frozen=True)
class Completion:
    text: str | None  # up to the first EOS; None if the model has no tokenizer
    tokens: np.ndarray  # int32 [l], where l is the completion length
    unmask_step: np.ndarray  # int32 [l], the denoising step that wrote each token, -1 for given tokens


@dataclasses.dataclass(frozen=True)
class Score:
    log_likelihood: float  # lower bound on log p(completion | prompt), nats, estimated from `draws` random maskings
    standard_error: float  # nats; an overestimate, since the draws are spread evenly over masking levels
    draws: int


@dataclasses.dataclass(frozen=True)
class DiffusionLM:
    """Masked diffusion language model with its tokenizer."""

    config: ModelConfig
    params: Params  # split over `mesh`
    tokenizer: Tokenizer | None  # None: token ids only
    mesh: Mesh
    origin: dict[str, str | int] = dataclasses.field(default_factory=dict)  # keys: path, stage, step, adapters
    # Defaults of `generate`; for a training run, the settings of its evaluations.
    decode: DecodeConfig = DecodeConfig(completion_length=128, block_length=32, steps=128)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        chat: bool = False,
        hint: str | Sequence[int] = "",
        completion_length: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        watch: Watch = None,
        **decoding,
    ) -> list[Completion]:
        """Returns a completion for every prompt. The noise of a completion depends on the seed, on the prompt, and on how many
        times the same prompt occurs earlier in `prompts`, but not on other prompts. Raises ValueError if the completion length,
        the block length and the number of steps are incompatible, if the hint is longer than the completion, if the seed is
        not in the range that `require_seed` allows, or if text is given and the model has no tokenizer.

        Args:
            chat: whether a text prompt becomes a user message in the model's chat template. Conversations always use the
                template.
            hint: the text or token ids with which every completion begins. The sampler does not change the hint.
            completion_length: the number of tokens of each completion, including the hint. The default is
                `self.decode.completion_length`.
            steps: the total number of denoising steps, a multiple of the number of blocks. By default `self.decode.steps`, or
                one step per token if `completion_length` or `block_length` is given.
            watch: a function that is called for each batch before the first denoising step and after every step. A batch may
                end with copies of its last completion, because all batches have the same size. Generation with `watch` is
                slower. The function may raise an exception to stop the generation.
            decoding: other fields of `DecodeConfig`, such as `block_length`, `temperature`, `remasking` or `cache`."""
        length = self.decode.completion_length if completion_length is None else completion_length
        block_length = decoding.pop("block_length", None)
        block = min(self.decode.block_length, length) if block_length is None else block_length
        if completion_length is None and block_length is None:
            steps = steps or self.decode.steps
        decoding |= {"completion_length": length, "block_length": block, "steps": steps or length}
        decode = dataclasses.replace(self.decode, **decoding)
        _require_list(prompts)
        start = self.encode(hint)
        require(len(start) <= length, f"the hint has {len(start)} tokens, completion_length={length}")
        canvas = np.full((len(prompts), length), self.config.mask_id, np.int32)
        canvas[:, : len(start)] = start
        encoded = [self.encode(prompt, chat) for prompt in prompts]
        self._warn_of_no_text([*prompt, *start] for prompt in encoded)
        return self._denoise(encoded, canvas, decode, seed, watch)

    def infill(
        self,
        canvases: Sequence[str | Sequence[int]],
        *,
        prompts: Sequence[Prompt] | None = None,
        chat: bool = False,
        steps: int | None = None,
        seed: int = 0,
        watch: Watch = None,
        **decoding,
    ) -> list[Completion]:
        """Fills the blanks of texts and returns a completion for each text. Tokens outside of the blanks stay unchanged. Raises
        ValueError if a text has no blank, or if the number of prompts differs from the number of texts.

        Args:
            canvases: texts with blanks, such as `"The answer is [MASK:4] because"` with a blank of four tokens. The pieces
                around a blank are tokenized separately. A canvas may also be a sequence of token ids in which every blank
                position holds `config.mask_id`.
            prompts: one prompt for each canvas, placed before it; by default, there are no prompts.
            steps: the number of denoising steps; by default, one step per blank token.
            chat, watch, decoding: the same arguments as in `generate`. The decoding option logits_eos_inf, which prevents the
                model from writing EOS, is on by default, because an EOS between two pieces of text would not end the text."""
        _require_list(canvases)
        prompts = [[]] * len(canvases) if prompts is None else prompts
        _require_list(prompts)
        numbers = f"{len(prompts)} prompts for {len(canvases)} canvases"
        require(len(prompts) == len(canvases), f"{numbers}; give one each, or none")
        encoded = [self.encode_template(canvas) for canvas in canvases]
        before = [self.encode(prompt, chat) for prompt in prompts]
        self._warn_of_no_text([*prompt, *canvas] for prompt, canvas in zip(before, encoded, strict=True))
        completions: dict[int, Completion] = {}
        for length in sorted({len(ids) for ids in encoded}):  # rows of one length are denoised together
            rows = [row for row, ids in enumerate(encoded) if len(ids) == length]
            canvas = np.array([encoded[row] for row in rows], np.int32)
            blanks = int((canvas == self.config.mask_id).sum(axis=1).max())
            given = {"completion_length": length, "block_length": length, "steps": steps or blanks, "logits_eos_inf": True}
            decode = dataclasses.replace(self.decode, **given | decoding)
            done = self._denoise([before[row] for row in rows], canvas, decode, seed, watch, whole=True)
            completions.update(zip(rows, done, strict=True))
        return [completions[row] for row in range(len(canvases))]

    def logits(self, tokens: np.ndarray, attention_mask: np.ndarray | None = None) -> jax.Array:
        """Returns the network's logits, float32 [b, t, v], for b sequences of t tokens and a vocabulary of v entries. The
        logits at position i predict token i, not token i + 1.

        Args:
            tokens: int32 [b, t], with `config.mask_id` at the positions to predict.
            attention_mask: bool [b, t], False at padding, or bool [b, t, t], True where a query may attend to a key. By
                default, every position may attend to every position."""
        tokens = np.asarray(tokens, np.int32)
        attention_mask = np.ones(tokens.shape, bool) if attention_mask is None else np.asarray(attention_mask, bool)
        with jax.set_mesh(self.mesh):
            return _logits(self.params, tokens, attention_mask, self.config)

    def score(
        self, prompt: Prompt, completion: str | Sequence[int], *, chat: bool = False, draws: int = 128, seed: int = 0
    ) -> Score:
        """Estimates a lower bound on log p(completion | prompt) (docs/method.md section 14). Makes `draws` masked copies of the
        completion, which has l tokens. In each copy, k random tokens are masked, and the values of k are spread evenly over
        1..l. The estimate is the mean over the copies of `l / k * (sum of the log-probabilities of the masked tokens)`. If the
        completion has only one token, the result is the exact log-probability. Raises ValueError if the completion is empty, or
        if `draws` or the seed is not in the range that `require_draws` or `require_seed` allows."""
        require_seed(seed)
        require_draws(draws)
        ids, answer = self._not_empty(self.encode(prompt, chat)), np.array(self.encode(completion), np.int32)
        require(answer.size, "an empty completion has no likelihood to estimate")
        self._warn_of_no_text([[*ids, *answer.tolist()]])
        draws = 1 if answer.size == 1 else draws
        corruption = mask_count(jax.random.key(seed), draws, answer.size)
        tokens, prompt_mask = left_padded([ids], _rounded(len(ids)), 0)
        rows = min(SCORED_ROWS, draws) * batch_size_divisor(self.mesh)
        bounds = []
        for begin in range(0, draws, rows):
            index = np.minimum(np.arange(begin, begin + rows), draws - 1)
            part = Corruption(*(to_host(x)[index] for x in corruption))
            repeated = (np.repeat(x, rows, axis=0) for x in (tokens, prompt_mask, answer[None]))
            with jax.set_mesh(self.mesh):
                bounds.append(to_host(_bound(self.params, *shard_batch((*repeated, part), self.mesh), self.config)))
        bound = np.concatenate(bounds)[:draws]
        error = float(bound.std(ddof=1) / np.sqrt(draws)) if draws > 1 else 0.0
        return Score(-float(bound.mean()), error, draws)

    def encode(self, prompt: Prompt, chat: bool = False) -> list[int]:
        """Returns the token ids of a prompt. If `chat` is true, a text becomes a user message in the chat template. Raises
        ValueError if the model lacks a tokenizer or a chat template that the prompt needs, or if token ids are outside of the
        vocabulary."""
        if isinstance(prompt, str) or (len(prompt) and isinstance(prompt[0], dict)):
            if prompt == "":
                return []
            if self.tokenizer is None:
                raise ValueError("this model folder has no tokenizer; give token ids instead of text")
            if not isinstance(prompt, str):
                return encode_chat(self.tokenizer, cast(Sequence[dict[str, str]], prompt))
            return encode_chat(self.tokenizer, [{"role": "user", "content": prompt}]) if chat else self.tokenizer.encode(prompt)
        ids = [int(id) for id in cast(Sequence[int], prompt)]
        size = self.config.vocab_size
        require(all(0 <= id < size for id in ids), f"token ids {ids} do not all lie in the vocabulary of {size}")
        return ids

    def _not_empty(self, ids: list[int]) -> list[int]:
        """Returns a prompt for the network. If the model predicts tokens from the position before them, an empty prompt becomes
        EOS, which separates the documents of the training data of such models."""
        return ids or [self.config.eos_id] * self.config.shift

    def encode_template(self, canvas: str | Sequence[int]) -> list[int]:
        """Returns the token ids of a text with blanks. A blank of four tokens is written [MASK:4] and becomes four tokens with
        the id `config.mask_id`. Raises ValueError if the text has no blank, or has more than `MOST_TOKENS` tokens."""
        if not isinstance(canvas, str):
            ids = self.encode(canvas)
        else:
            ids, end = [], 0
            for blank in BLANK.finditer(canvas):
                ids += self.encode(canvas[end : blank.start()])
                size = blank[1] or "1"
                fits = len(size) <= 9 and len(ids) + int(size) <= MOST_TOKENS
                require(fits, f"{blank[0][:40]}: a canvas has at most {MOST_TOKENS} tokens")
                ids += [self.config.mask_id] * int(size)
                end = blank.end()
            ids += self.encode(canvas[end:])
        require(self.config.mask_id in ids, f"{canvas!r} has no blank; write [MASK:n] where n tokens shall be filled in")
        return ids

    def _warn_of_no_text(self, ids: Iterable[list[int]]) -> None:
        if self.tokenizer is not None:
            warn_of_no_text(self.tokenizer, "prompts with their given tokens", ids)

    def _denoise(
        self, prompts: list[list[int]], canvas: np.ndarray, decode: DecodeConfig, seed: int, watch: Watch, whole: bool = False
    ) -> list[Completion]:
        """Fills the MASK positions of n canvases, int32 [n, l], batch by batch, and returns the completions. `prompts` holds
        the token ids of one prompt for each canvas. If `whole` is true, the texts of the completions include the tokens after
        the first EOS."""
        require_seed(seed)
        prompts = [self._not_empty(ids) for ids in prompts]
        lengths = [len(ids) for ids in prompts]
        longest = int(np.argmax(lengths))
        fits = lengths[longest] <= MOST_TOKENS
        require(fits, f"prompt {longest} (from 0) has {lengths[longest]} tokens; a prompt has at most {MOST_TOKENS}")
        problem = [zlib.crc32(np.array(ids, np.int32).tobytes()) for ids in prompts]
        counters: dict[int, itertools.count] = defaultdict(itertools.count)
        occurrence = [next(counters[number]) for number in problem]
        ids = np.array([problem, occurrence], np.uint32)
        length = _rounded(lengths[longest])
        divisor = batch_size_divisor(self.mesh)
        # All batches have one size, filled with repeats of the last row, so that few programs are compiled.
        size = min(-(-len(prompts) // divisor), ROWS_PER_DEVICE) * divisor
        batching = Batching(self.mesh, size, [length], shortest_first=False)
        run = sample if watch is None else functools.partial(sample_stepwise, watch=watch)
        completions: list[Completion] = []
        for begin in range(0, len(prompts), size):  # with all prompts padded to the longest, they may not fit into memory
            rows = np.minimum(np.arange(begin, begin + size), len(prompts) - 1)
            batch = left_padded([prompts[row] for row in rows], length, self.config.eos_id)
            requests = Requests(*batch, canvas[rows], *ids[:, rows])
            with jax.set_mesh(self.mesh):
                [(_, done)] = complete(self.params, requests, jax.random.key(seed), self.config, decode, batching, sampler=run)
            for row, steps in zip(done.tokens[: len(prompts) - begin], done.unmask_step, strict=False):
                text = None if self.tokenizer is None else completion_text(self.tokenizer, row, whole)
                completions.append(Completion(text, row, steps))
        return completions


def _require_list(texts) -> None:
    if isinstance(texts, str):
        raise ValueError(f"{texts!r} is one text; give a list of texts")


def _rounded(length: int) -> int:
    return max(1, -(-length // BUCKET)) * BUCKET


@functools.partial(jax.jit, static_argnames="cfg")
def _logits(params, tokens, attention_mask, cfg: ModelConfig):
    return unembed(params, forward(params, tokens, attention_mask, cfg), cfg)


def _check_logits(params: Params, cfg: ModelConfig, mesh: Mesh, name: str, allow_nonfinite: bool) -> None:
    """Raises ValueError if the network computes NaN or infinite logits for a few tokens and MASKs. This happens if the weights
    are finite but so large that a product of them overflows. If `allow_nonfinite` is true, logs a warning instead. `name` is
    the name of the model for the message."""
    row = [*range(min(PROBED, cfg.vocab_size)), *[cfg.mask_id] * PROBED]
    tokens, present = np.array([row] * batch_size_divisor(mesh), np.int32), np.ones((batch_size_divisor(mesh), len(row)), bool)
    with jax.set_mesh(mesh):
        logits = _logits(params, *shard_batch((tokens, present), mesh), cfg)
        check_finite(logits, f"{name}: the network's logits are too large to compute", allow_nonfinite)


_bound = jax.jit(negative_bound, static_argnames="cfg")


def load(
    path: Path,
    *,
    adapters: Path | None = None,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    stage: str | None = None,
    needs: str = "ids",
    trust: Collection[str] = (),
    allow_nonfinite: bool = False,
) -> DiffusionLM:
    """Loads a model from a Hugging Face folder of a supported model (docs/models.md), from a folder that `igpo_jax.convert`
    wrote, or from the folder of a training run. `path` may also be the id of a model on the Hugging Face hub, such as
    GSAI-ML/LLaDA-8B-Instruct, if the model is in the hub's cache on this machine; nothing is downloaded. If a file is missing
    or damaged, raises a ValueError that names the file and the reason.

    Args:
        adapters: a folder with LoRA adapters of the model in PEFT's format.
        dtype: "float32" or "bfloat16", the dtype of the parameters and activations, but not of adapters and int8 weights. The
            default is that of `default_dtype`: float32 on CPUs and on NVIDIA GPUs older than Ampere, otherwise bfloat16.
        mesh: the device mesh that holds the parameters. The default is a mesh of all devices, with the shape for which sampling
            is estimated to be fastest.
        stage: the checkpoint of a training run to load: "sft" or "rl" for the newest checkpoint of this stage, or a stage and a
            step, such as "rl-40". The default is the newest checkpoint of the last stage that has one. The argument is only
            allowed if `path` is a run's folder.
        needs: the kind of input that the model will be given: "ids", "text" or "chat". If such input needs a tokenizer or a
            chat template that the folder lacks, raises ValueError before any weights are read.
        trust: Python modules outside this package that the config.json of a training run is allowed to name as its task.
            Loading the run imports its task, which runs with your permissions.
        allow_nonfinite: if true, weights that are NaN or infinite cause only a warning. By default, such weights raise a
            ValueError that names the tensor, and so do weights with which the network computes such numbers."""
    require(needs in ("ids", "text", "chat"), f"needs={needs!r} is none of ids, text, chat")
    prepare_accelerators()
    placed, dtype = mesh or make_mesh(), dtype or default_dtype()
    require_model(path, "path")
    if is_run(path):
        own = f"{path} is a run's folder, which has its own adapters; give the model of {adapters} instead"
        require(adapters is None, own)
        run = restore_run(path, placed, stage, trust, allow_nonfinite)
        config, tokenizer = run.model, run.tokenizer
        cast = jax.tree.map(lambda x: x if int8.is_int8(x) else x.astype(dtype), run.params, is_leaf=int8.is_int8)
        params = dataclasses.replace(run, params=cast).policy()
        # A kernel that was named for training may not support every length and machine.
        attention = "xla" if run.config.model.attention == "xla" else "auto"
        config = dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype, attention=attention)
        config = fit_to_devices(config, placed, None)
        origin: dict[str, str | int] = {"path": str(path), "stage": run.stage, "step": run.step}
        _check_logits(params, config, placed, str(path), allow_nonfinite)
        model = DiffusionLM(config, params, tokenizer, placed, origin, run.config.evaluation.decode)
        return model if mesh else _laid_out_for_sampling(model, run.config.lora)
    require(stage is None, f"{path} is not a run's folder, so it has no stage {stage!r}")
    config = folder_model_config(path, param_dtype=dtype, compute_dtype=dtype, attention="auto")
    config = fit_to_devices(config, placed, None)
    cfg, values = (None, None) if adapters is None else import_peft(adapters, config, allow_nonfinite)
    check_model_divides(config, placed, cfg)
    tokenizer = None
    if needs != "ids" or has_tokenizer(path):
        tokenizer = load_tokenizer(path, config.mask_id)
        if needs == "chat":
            encode_chat(tokenizer, [{"role": "user", "content": ""}])
        config = configuration.with_tokenizer(config, tokenizer, path)
    origin = {"path": str(path)} if adapters is None else {"path": str(path), "adapters": str(adapters)}
    params = load_params(path, config, placed, allow_nonfinite)
    if cfg is not None:
        params = lora.attach(params, jax.device_put(values, lora.shardings(config, cfg, placed)), cfg)
    _check_logits(params, config, placed, " with adapters ".join(map(str, origin.values())), allow_nonfinite)
    model = DiffusionLM(config, params, tokenizer, placed, origin)
    return model if mesh else _laid_out_for_sampling(model, cfg)


def _laid_out_for_sampling(model: DiffusionLM, adapters: LoraConfig | None) -> DiffusionLM:
    """Returns the model on the mesh that `run.layout.mesh_for_sampling` chooses. If this mesh is not `model.mesh`, copies the
    weights to it. On several devices, sampling without this copy would spend most of its time gathering the weights for every
    evaluation of the network."""
    load = Load(model.decode, ROWS_PER_DEVICE * model.mesh.devices.size, TYPICAL_PROMPT + model.decode.completion_length)
    mesh = mesh_for_sampling(model.config, adapters, model.mesh, load)
    if mesh is model.mesh:
        return model
    return dataclasses.replace(model, params=Policy(model.config, adapters).copy_to(model.params, mesh), mesh=mesh)


def default_dtype() -> str:
    """Returns the default dtype of parameters and activations, which is bfloat16 on accelerators and float32 on CPUs. Older
    NVIDIA GPUs, such as the T4, have no units for bfloat16 and get float32. They have units for float16, but the activations of
    models that were trained in bfloat16 can exceed its largest number, 65504."""
    device = jax.devices()[0]
    old_gpu = 0 < cuda_major(device) < BFLOAT16_MAJOR
    return "float32" if device.platform == "cpu" or old_gpu else "bfloat16"
