"""python tests/helpers/llada_parity.py FOLDER

Compares this project with outputs of the released LLaDA for the same weights (docs/method.md section 3). FOLDER holds
config.json, model.safetensors, bf16_sharded/, forward.npz, loss.npz, pretrain_grads.safetensors, generate.json and
generate.npz, of any sizes; missing files are reported as absent. Prints one line per check; the exit code is 0 if no
check failed.
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil
import sys
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType

from igpo_jax.diffusion.corruption import Corruption, sft_loss
from igpo_jax.diffusion.sampler import sample
from igpo_jax.diffusion.unmasking import DecodeConfig, most_confident, propose, transfer_count
from igpo_jax.model import transformer
from igpo_jax.model.attention import rope_table, rotate
from igpo_jax.model.transformer import forward, rms_norm, unembed
from igpo_jax.runtime.mesh import AXES
from igpo_jax.weights.folders import convert, export, load_params
from igpo_jax.weights.huggingface import folder_model_config

ACTIVATIONS = 2e-4  # absolute, float32
LOSS = 1e-5
GRADIENT = 1e-3  # norm of the difference over norm, per tensor
# Mean difference over standard deviation, between two bf16 computations with different rounding. PyTorch's bf16 differs
# from its float32 by 0.016.
BF16 = 0.05
INTERNALS = (
    "attn_norm", "q_proj", "k_proj", "v_proj", "q_rope", "k_rope", "attn_out", "ff_norm", "ff_proj", "up_proj",
    "ff_out", "out",
)  # fmt: skip


class Absent(Exception):
    """Raised if the folder lacks data that a check needs."""


class Outcome(NamedTuple):
    text: str
    ok: bool


class Case(NamedTuple):
    """One run of the released sampler. Its noise, if recorded: gumbel [steps, b, t, v] and uniform [steps, b, t]."""

    name: str
    decode: DecodeConfig
    prompt: np.ndarray
    attention_mask: np.ndarray
    trace: np.ndarray  # [steps + 1, b, t]
    out: np.ndarray
    gumbel: np.ndarray | None
    uniform: np.ndarray | None


class Fixture:
    """Recorded arrays of a folder, with its network and parameters.

    Raises:
        ValueError: the folder does not have the layout of a fixture, or its network is not supported.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.mesh = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
        has_weights = [path for path in (self.folder, self.folder / "bf16_sharded") if any(path.glob("model*.safetensors"))]
        recorded = {path.name: path for path in self.folder.glob("*.npz")}
        if not (self.folder / "config.json").is_file() or not has_weights or "forward.npz" not in recorded:
            raise ValueError(f"{folder} is not a fixture: it needs config.json, model.safetensors and forward.npz")
        self.arrays, self.weights = {}, has_weights[0]
        try:
            for name in ("forward.npz", "loss.npz", "generate.npz"):
                self.arrays[name] = dict(np.load(recorded[name])) if name in recorded else {}
            path = self.folder / "generate.json"
            self.generate = json.loads(path.read_text()) if path.is_file() else {}
        except Exception as error:  # readers raise many kinds of errors on damaged files
            raise ValueError(f"{folder} has a damaged file: {error}") from None
        self.cfg = folder_model_config(self.folder)

    def __call__(self, name: str) -> np.ndarray:
        """Returns the recorded array `file/name`; int64 becomes int32."""
        file, key = name.split("/", 1)
        if key not in self.arrays[f"{file}.npz"]:
            raise Absent(name)
        value = self.arrays[f"{file}.npz"][key]
        return value.astype(np.int32) if value.dtype == np.int64 else value

    def part(self, name: str) -> pathlib.Path:
        """Returns the path of a file or folder of the fixture; raises Absent if it does not exist."""
        if not (self.folder / name).exists():
            raise Absent(name)
        return self.folder / name

    @functools.cached_property
    def params(self):
        return load_params(self.weights, self.cfg, self.mesh)

    @functools.cached_property
    def block0(self):
        return internals(self.params, self("forward/input_ids"), self.cfg)

    @functools.cached_property
    def sampler_cfg(self):
        """Model configuration with the recorded sampler's token ids, which may differ from those of config.json."""
        return dataclasses.replace(
            self.cfg,
            mask_id=self.generate.get("mask_id", self.cfg.mask_id),
            eos_id=self.generate.get("eos_id_used_by_generate", self.cfg.eos_id),
            eot_id=self.generate.get("eot_id_used_by_generate"),
        )

    @functools.cached_property
    def cases(self) -> tuple[list[Case], list[str]]:
        """Returns the cases, and the names of those that are incompletely recorded."""
        found, absent = [], []
        for entry in self.generate.get("cases", []):
            try:
                found.append(self._case(entry["name"], entry["kwargs"]))
            except Absent as lacking:
                absent.append(str(lacking).removeprefix("generate/"))
        if not found:
            raise Absent("cases in generate.json and generate.npz")
        return found, absent

    def _case(self, name: str, kwargs: dict) -> Case:
        kwargs = {"steps": 128, "gen_length": 128, "block_length": 128} | kwargs  # the released defaults
        kwargs["completion_length"] = kwargs.pop("gen_length")
        fields = {field.name for field in dataclasses.fields(DecodeConfig)}
        decode = DecodeConfig(**{key: value for key, value in kwargs.items() if key in fields})

        array = {key: self(f"generate/{name}/{key}") for key in ("prompt", "trace", "out")}
        attention_mask = self.arrays["generate.npz"].get(f"{name}/attention_mask", np.ones_like(array["prompt"])).astype(bool)
        gumbel = uniform = None
        if decode.temperature > 0:
            with np.errstate(divide="ignore"):  # a uniform draw can be 0
                gumbel = -np.log(-np.log(self(f"generate/{name}/uniform_noise_f64"))).astype(np.float32)
        if decode.remasking == "random":
            uniform = self(f"generate/{name}/uniform_conf_f32")
        return Case(name, decode, attention_mask=attention_mask, gumbel=gumbel, uniform=uniform, **array)


# Weights


def safetensors(folder: pathlib.Path) -> dict[tuple[str, str], tuple]:
    """Returns {(file, tensor): (dtype, shape, bytes)}, independently of the project's reader."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        header.pop("__metadata__", None)
        for name, of in header.items():
            begin, end = of["data_offsets"]
            tensors[path.name, name] = of["dtype"], of["shape"], raw[start + begin : start + end]
    return tensors


def round_trip(fixture: Fixture, name: str) -> Outcome:
    """Converts to this project's folder and back. Tensors (byte for byte), files and configuration must not change."""
    with tempfile.TemporaryDirectory() as scratch:
        source, ours, back = (
            pathlib.Path(scratch, "source"),
            pathlib.Path(scratch, "ours"),
            pathlib.Path(scratch, "back"),
        )
        source.mkdir()
        for path in (*fixture.part(name).glob("model*.safetensors*"), fixture.part(name) / "config.json"):
            shutil.copy(path, source)  # without the other files of the fixture
        if len([*source.iterdir()]) == 1:
            raise Absent("model.safetensors")
        convert(source, ours, fixture.mesh)
        export(ours, back, fixture.mesh)
        theirs, have = safetensors(source), safetensors(back)
        for path in source.glob("*.json"):
            theirs[path.name, ""] = json.loads(path.read_text())
            have[path.name, ""] = json.loads((back / path.name).read_text())
    differ = sorted("/".join(key) for key in theirs.keys() | have.keys() if theirs.get(key) != have.get(key))
    tensors, files = [tensor for _, tensor in theirs if tensor], {file for file, _ in theirs}
    return Outcome(named(f"{len(tensors)} tensors in {len(files)} files compared", "differ", differ), not differ)


def same_values(fixture: Fixture) -> Outcome:
    if not (fixture.folder / "model.safetensors").exists():
        raise Absent("model.safetensors")
    sharded = load_params(fixture.part("bf16_sharded"), fixture.cfg, fixture.mesh)

    pairs = [*zip(jax.tree.leaves_with_path(fixture.params), jax.tree.leaves(sharded), strict=True)]
    differ = [jax.tree_util.keystr(path) for (path, a), b in pairs if np.asarray(a).tobytes() != np.asarray(b).tobytes()]
    return Outcome(named(f"{len(pairs)} parameters compared, bit for bit", "differ", differ), not differ)


def named(text: str, problem: str, names: list[str]) -> str:
    return f"{text}; {problem}: {', '.join(names)}" if names else text


# Forward pass


@functools.partial(jax.jit, static_argnames="cfg")
def logits_of(params, tokens, attention_mask, cfg):
    return unembed(params, forward(params, tokens, attention_mask, cfg), cfg)


@functools.partial(jax.jit, static_argnames="cfg")
def internals(params, tokens, cfg):
    """Returns intermediate values of the first block, computed with its functions. `out` is the output of the block itself."""
    layer = jax.tree.map(lambda w: w[0], params["blocks"])
    x, attention_mask = params["embedding"][tokens], jnp.ones(tokens.shape, bool)
    rope = rope_table(jnp.arange(tokens.shape[1]), cfg.head_size, cfg.rope_theta)
    linear, found = functools.partial(transformer._linear, layer=layer), {}

    def rotated(projected):
        heads = projected.reshape(*tokens.shape, -1, cfg.head_size)
        return rotate(heads, *rope).swapaxes(1, 2)

    h = found["attn_norm"] = rms_norm(x, layer["attention_norm"], cfg.norm_epsilon)
    for name, ours in (("q", "query"), ("k", "key"), ("v", "value")):
        found[f"{name}_proj"] = linear(h, name=ours)
    found["q_rope"], found["k_rope"] = rotated(found["q_proj"]), rotated(found["k_proj"])
    found["attn_out"] = transformer._attention(h, layer, attention_mask, rope, cfg, None, None)[0]
    h = found["ff_norm"] = rms_norm(x + found["attn_out"], layer["mlp_norm"], cfg.norm_epsilon)
    found["ff_proj"], found["up_proj"] = linear(h, name="gate"), linear(h, name="up")
    found["ff_out"] = linear(jax.nn.silu(found["ff_proj"]) * found["up_proj"], name="down")
    found["out"] = transformer._block(x, layer, attention_mask, rope, cfg, None, None)[0]
    return found


@functools.partial(jax.jit, static_argnames="cfg")
def hidden_of(params, tokens, cfg):
    """Returns [layers + 1, b, t, d]: the embeddings, the output of every block but the last, and that of the final norm."""
    x, attention_mask = params["embedding"][tokens], jnp.ones(tokens.shape, bool)
    rope = rope_table(jnp.arange(tokens.shape[1]), cfg.head_size, cfg.rope_theta)
    states = [x]
    for layer in range(cfg.layers - 1):
        weights = jax.tree.map(lambda w, layer=layer: w[layer], params["blocks"])
        states.append(transformer._block(states[-1], weights, attention_mask, rope, cfg, None, None)[0])
    return jnp.stack([*states, forward(params, tokens, attention_mask, cfg)])


def difference(ours, theirs, limit: float = ACTIVATIONS) -> Outcome:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return Outcome(f"shape {ours.shape}, recorded {theirs.shape}", False)
    worst = np.max(np.abs(ours - theirs))
    return Outcome(f"worst difference {worst:.1e} (limit {limit:.0e})", bool(worst <= limit))


def internal(fixture: Fixture, name: str) -> Outcome:
    return difference(fixture.block0[name], fixture(f"forward/block0.{name}"))


def hidden_states(fixture: Fixture) -> Outcome:
    return difference(hidden_of(fixture.params, fixture("forward/input_ids"), fixture.cfg), fixture("forward/hidden_states"))


def logits(fixture: Fixture, prefix: str = "") -> Outcome:
    expected, tokens = fixture(f"forward/{prefix}logits"), fixture("forward/input_ids")
    if prefix == "long_":
        tokens = fixture("forward/long_input_ids")
    attention_mask = compared = np.ones(tokens.shape, bool)
    if prefix == "bool_bias_":
        bias = fixture("forward/bool_bias")[:, 0]  # [1 or b, t, t]
        attention_mask = np.broadcast_to(bias, (len(tokens), *bias.shape[1:]))
        compared = attention_mask.any(axis=2)
    elif f"{prefix}mask" in fixture.arrays["forward.npz"]:
        attention_mask = compared = fixture(f"forward/{prefix}mask").astype(bool)  # outputs at padding are meaningless
    ours = np.asarray(logits_of(fixture.params, tokens, attention_mask, fixture.cfg))
    return difference(ours[compared], expected[compared])


def bf16(fixture: Fixture, name: str) -> Outcome:
    tokens, theirs = fixture("forward/input_ids"), fixture(f"forward/bf16_{name}_as_f32")
    cfg = dataclasses.replace(fixture.cfg, param_dtype="bfloat16", compute_dtype="bfloat16")
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), fixture.params)
    if name == "logits":
        ours = logits_of(params, tokens, np.ones(tokens.shape, bool), cfg)
    else:
        ours = hidden_of(params, tokens, cfg)
    ratio = float(np.mean(np.abs(np.asarray(ours, np.float32) - theirs)) / np.std(theirs))
    return Outcome(f"mean difference {ratio:.1e} of the standard deviation (limit {BF16:.0e})", ratio <= BF16)


# Losses


def pretrain_loss_of(params, fixture: Fixture):
    """Returns the project's loss with an empty prompt, over whole rows."""
    tokens, noisy, p = (fixture(f"loss/{name}") for name in ("ids", "noisy", "p_mask"))
    corruption = Corruption(noisy == fixture.cfg.mask_id, 1 / p[:, 0])
    return sft_loss(params, tokens[:, :0], np.ones((len(tokens), 0), bool), tokens, corruption, fixture.cfg)


def pretrain_loss(fixture: Fixture) -> Outcome:
    return difference(pretrain_loss_of(fixture.params, fixture), fixture("loss/pretrain_loss"), LOSS)


def sft_loss_check(fixture: Fixture) -> Outcome:
    """Computes the loss row by row, since prompt lengths differ."""
    names = ("ids", "sft_noisy", "p_mask", "sft_prompt_lengths", "sft_loss")
    tokens, noisy, p, prompt_lengths, expected = (fixture(f"loss/{name}") for name in names)
    losses, loss = [], jax.jit(sft_loss, static_argnames="cfg")
    for row, n in enumerate(prompt_lengths):
        here, masked = tokens[row : row + 1], noisy[row : row + 1] == fixture.cfg.mask_id
        corruption = Corruption(masked[:, n:], 1 / p[row : row + 1, 0])
        losses.append(loss(fixture.params, here[:, :n], np.ones((1, n), bool), here[:, n:], corruption, fixture.cfg))
    return difference(np.mean(losses), expected, LOSS)


def token_losses(fixture: Fixture) -> Outcome:
    """Compares CE / p of every masked token, times p."""
    names = ("ids", "noisy", "p_mask", "pretrain_token_loss")
    tokens, noisy, p, expected = (fixture(f"loss/{name}") for name in names)
    masked = noisy == fixture.cfg.mask_id
    logprobs = jax.nn.log_softmax(logits_of(fixture.params, noisy, np.ones(noisy.shape, bool), fixture.cfg))
    ours = -np.take_along_axis(np.asarray(logprobs), tokens[..., None], -1)[..., 0]
    return difference(ours[masked], expected * p[masked])


def gradients(fixture: Fixture) -> Outcome:
    """Loads the recorded gradients like weights, which also checks their names and shapes, and compares them."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(fixture.part("pretrain_grads.safetensors"), pathlib.Path(scratch, "model.safetensors"))
        shutil.copy(fixture.part("config.json"), scratch)
        expected = load_params(scratch, fixture.cfg, fixture.mesh)
    ours = jax.jit(jax.grad(lambda params: pretrain_loss_of(params, fixture)))(fixture.params)
    relative = {}
    for (path, have), want in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        stacked = path[0].key == "blocks"  # a leading axis for layers
        for layer, (a, b) in enumerate(zip(have, want, strict=True) if stacked else [(have, want)]):
            name = path[-1].key + (f" of block {layer}" if stacked else "")
            relative[name] = float(jnp.linalg.norm(a - b) / jnp.maximum(jnp.linalg.norm(b), 1e-30))
    where = list(relative)[np.argmax([*relative.values()])]  # the first NaN, if any
    text = f"worst relative difference {relative[where]:.1e} (limit {GRADIENT:.0e}), of {where}"
    return Outcome(text, relative[where] <= GRADIENT)


# Sampler


@functools.partial(jax.jit, static_argnames=("cfg", "decode", "may_write_mask"))
def reference_step(params, x, attention_mask, given, within, count, gumbel, uniform, cfg, decode, may_write_mask):
    """Makes one step of the released sampler (docs/method.md section 5) on rows [b, t]; `within` [t]: up to the block's end."""
    logits = logits_of(params, x, attention_mask, cfg)
    if decode.cfg_scale > 0:
        nothing = logits_of(params, jnp.where(given, cfg.mask_id, x), attention_mask, cfg)
        logits = nothing + (decode.cfg_scale + 1) * (logits - nothing)
    if not may_write_mask:
        logits = logits.at[..., cfg.mask_id].set(-jnp.inf)
    if decode.temperature > 0 and decode.confidence_eos_eot_inf and not decode.logits_eos_inf:
        cfg = dataclasses.replace(cfg, eos_id=cfg.eot_id)  # EOS keeps its confidence (docs/method.md section 5)
    drawn, confidence = propose(logits, gumbel, uniform, cfg, decode)
    return jnp.where(most_confident(confidence, (x == cfg.mask_id) & within, count), drawn, x)


def reference_trace(params, case: Case, cfg, may_write_mask: bool = True) -> np.ndarray:
    """Returns the released sampler's canvas after every step, int32 [steps + 1, b, t], computed with this project's functions.

    Compatibility mode: unlike `sample`, it may write MASK, masks of the prompt compete with the block's, rows continue after a
    block of EOS, and the confidence flag spares EOS at temperatures above 0.
    """
    decode, (rows, prompt_length) = case.decode, case.prompt.shape
    x = np.concatenate([case.prompt, np.full((rows, decode.completion_length), cfg.mask_id, np.int32)], axis=1)
    attention_mask = np.concatenate([case.attention_mask, np.ones((rows, decode.completion_length), bool)], axis=1)
    given, trace, per_block = x != cfg.mask_id, [x], decode.steps // decode.blocks
    for step in range(decode.steps):
        begin = prompt_length + step // per_block * decode.block_length
        end = begin + decode.block_length
        if step % per_block == 0:
            masks = (x[:, begin:end] == cfg.mask_id).sum(axis=1)
        count, within = transfer_count(masks, step % per_block, per_block), np.arange(x.shape[1]) < end
        noise = (None if all_of is None else all_of[step] for all_of in (case.gumbel, case.uniform))
        x = np.asarray(reference_step(params, x, attention_mask, given, within, count, *noise, cfg, decode, may_write_mask))
        trace.append(x)
    return np.stack(trace)


def released_sampler(fixture: Fixture) -> Outcome:
    (cases, absent), differ, states = fixture.cases, [], 0
    for case in cases:
        ours = reference_trace(fixture.params, case, fixture.sampler_cfg)
        if not np.array_equal(ours, case.trace):
            step = next(
                (i for i, (a, b) in enumerate(zip(ours, case.trace, strict=False)) if not np.array_equal(a, b)), len(ours)
            )
            differ.append(f"{case.name} from step {step}")
        elif not np.array_equal(ours[-1], case.out):
            differ.append(f"{case.name} in its result")
        states += len(ours)
    text = named(f"{len(cases) - len(differ)}/{len(cases)} cases exact, {states} states", "differ", differ)
    return Outcome(named(text, "absent", absent), not differ)


def our_trace(params, case: Case, cfg) -> np.ndarray:
    """Returns the canvases of `sample` like `reference_trace`, reconstructed from the step that wrote each token."""
    rows, length = len(case.prompt), case.decode.completion_length
    keys, canvas = jax.random.split(jax.random.key(0), rows), np.full((rows, length), cfg.mask_id, np.int32)
    done = sample(params, case.prompt, case.attention_mask, canvas, keys, cfg, case.decode)
    states = [np.where(done.unmask_step < step, done.tokens, cfg.mask_id) for step in range(case.decode.steps + 1)]
    return np.stack([np.concatenate([case.prompt, state], axis=1) for state in states])


def reason_to_differ(fixture: Fixture, case: Case, ours: np.ndarray) -> str | None:
    """Returns the deliberate difference from the released sampler that explains the trace of `sample`, or None."""
    cfg, prompt_length = fixture.sampler_cfg, case.prompt.shape[1]
    blocks = case.out[:, prompt_length:].reshape(len(case.prompt), -1, case.decode.block_length)
    if np.any(case.prompt == cfg.mask_id):
        return "masks in the prompt"
    if np.any(np.all(blocks == cfg.eos_id, axis=2)):
        return "a block of EOS only"
    recorded, without_mask = (reference_trace(fixture.params, case, cfg, may_write_mask=may) for may in (True, False))
    if np.array_equal(recorded, case.trace) and np.array_equal(without_mask, ours):
        return "MASK never drawn"
    return None


def own_sampler(fixture: Fixture) -> Outcome:
    """Checks `sample` on cases without noise; only differences with a `reason_to_differ` are allowed."""
    cases = [case for case in fixture.cases[0] if case.gumbel is None and case.uniform is None]
    differ, reasons = [], []
    for case in cases:
        ours = our_trace(fixture.params, case, fixture.sampler_cfg)
        if not np.array_equal(ours, case.trace):
            reason = reason_to_differ(fixture, case, ours)
            (reasons if reason else differ).append(f"{case.name} ({reason})" if reason else case.name)
    exact = len(cases) - len(differ) - len(reasons)
    text = named(f"{exact}/{len(cases)} cases without noise exact", "differ", differ)
    return Outcome(named(text, "differ on purpose", reasons), not differ)


CHECKS = {
    "float32 to our folder and back": functools.partial(round_trip, name="."),
    "bf16_sharded to our folder and back": functools.partial(round_trip, name="bf16_sharded"),
    "bf16_sharded holds the float32 values": same_values,
    **{f"block 0, {name}": functools.partial(internal, name=name) for name in INTERNALS},
    "hidden states": hidden_states,
    "logits": logits,
    "logits, left padding": functools.partial(logits, prefix="leftpad_"),
    "logits, right padding": functools.partial(logits, prefix="rightpad_"),
    "logits, boolean attention mask": functools.partial(logits, prefix="bool_bias_"),
    "logits, long input": functools.partial(logits, prefix="long_"),
    "logits in bfloat16": functools.partial(bf16, name="logits"),
    "hidden states in bfloat16": functools.partial(bf16, name="hidden"),
    "pretraining loss": pretrain_loss,
    "pretraining loss, token by token": token_losses,
    "fine-tuning loss": sft_loss_check,
    "gradients of the pretraining loss": gradients,
    "released sampler from our pieces": released_sampler,
    "our sampler": own_sampler,
}


def check(fixture: Fixture, name: str) -> Outcome | Absent:
    """Runs a check without progress bars and warnings. Any error makes the check fail."""
    try:
        with jax.default_matmul_precision("highest"), contextlib.redirect_stderr(io.StringIO()):
            return CHECKS[name](fixture)
    except Absent as absent:
        return absent
    except Exception as error:
        return Outcome(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", False)


def main(arguments: list[str]) -> int:
    logging.set_verbosity(logging.ERROR)
    try:
        if len(arguments) != 1:
            raise ValueError("usage: python tests/helpers/llada_parity.py FOLDER")
        fixture = Fixture(*arguments)
    except ValueError as error:
        print(f"error: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return 2
    failed = 0
    for name in CHECKS:
        outcome = check(fixture, name)
        if isinstance(outcome, Absent):
            word, text = "-", f"absent: {outcome}"
        else:
            word, text = "ok" if outcome.ok else "FAIL", outcome.text
            failed += not outcome.ok
        print(f"{word:5}{name:38}{text}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
