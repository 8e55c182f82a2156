"""Hints: pieces of a known solution, which are written onto the canvas (the positions of a completion) before denoising
(docs/method.md section 6; paper Eq. 4).

`segment` cuts the solution into chunks, `choose` selects the chunks to reveal, `destinations` computes where on the canvas
these chunks start, and `overwrite` writes them onto the canvas. `inpaint` combines these functions into one compiled program
for a whole batch. The default settings follow the paper. Comments marked "REF" state where the released code differs."""

import dataclasses
import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.model.sharding import Array
from igpo_jax.runtime.checks import at_least, check_fields, checked, not_negative, one_of, require, within

FREE_TAIL = 30  # REF: the last positions of the canvas never hold hints
MAX_GAP = 100  # REF: longest stretched gap between chunks
MAX_STRETCH = 1.5  # REF: largest factor by which gaps are stretched
NOISE_KEYS = ("number_noise", "operator_noise", "filler_noise")
CHUNK_KEYS = ("chunk_min", "chunk_max", "round_up", "stretch")
UNUSED_KEYS = {  # configuration keys that each hint policy does not use
    "chunks": (),
    "prefix": CHUNK_KEYS,
    "none": ("ratio_min", "ratio_max", "curriculum", "source", "exclude_answer", *CHUNK_KEYS, *NOISE_KEYS),
}


@dataclasses.dataclass(frozen=True)
class InpaintingConfig:
    """Configuration of hints and of the second attempts that use hints. docs/method.md section 15 lists the options."""

    enabled: bool = True  # groups whose completions are all wrong get a second attempt
    # Hints of a second attempt. "chunks": random pieces of the solution, or all of it if ratio_min=ratio_max=1. "prefix": its
    # beginning, at most up to the first token that may not be shown. "none": no hints (baseline with equally many samples).
    policy: str = checked("chunks", one_of(*UNUSED_KEYS))
    # Source of hints. "own": the newest correct first attempt at the same problem; if none exists, no second attempt is made.
    source: str = checked("solution", one_of("solution", "own"))
    # Rate at which hint ratios adapt so that half of the second attempts are correct, see `next_hint_ratio_center`; 0: fixed.
    curriculum: float = checked(0.0, not_negative)
    chunk_min: int = 5  # tokens of the shortest chunk
    chunk_max: int = 10  # tokens of the longest chunk
    ratio_min: float = 0.2  # share of the chunks that a completion shows: eta ~ U[ratio_min, ratio_max)
    ratio_max: float = 0.6  # see `ratio_min`
    replace_fraction: float = checked(0.5, within(0, 1))  # lambda: at most this share of a group is replaced
    # Hinted completions of a group that are sampled at once, until lambda * G of them are correct, the first ones are all wrong,
    # or G are sampled. 0: all G at once, as in the paper.
    tries: int = checked(0, at_least(0))
    exclude_answer: bool = True  # hints never show the answer. REF: False, the last chunk is always revealed
    round_up: bool = False  # of N chunks, False reveals floor(ratio * N), at least one. REF: True, N - floor(N * (1 - ratio))
    # Noise in the solutions, as in the paper's experiment on robustness, see tasks/noise.py: the share of their numbers and of
    # their operators that are replaced by others, and the share of their words that are followed by meaningless words
    number_noise: float = checked(0.0, within(0, 1))
    operator_noise: float = checked(0.0, within(0, 1))  # see `number_noise`
    filler_noise: float = checked(0.0, within(0, 1))  # see `number_noise`
    stretch: bool = False  # False: hints keep their positions in the trace. REF: True, they are spread over the canvas
    # False: chunks are cut once per problem, ratios are independent, and a group's last completions are replaced. REF: True,
    # chunks are cut for every completion, a group's ratios ascend, and its first completions are replaced.
    by_completion: bool = False

    def __post_init__(self):
        check_fields(self, "inpainting.")
        default = {field.name: field.default for field in dataclasses.fields(self)}
        idle = [name for name in UNUSED_KEYS[self.policy] if getattr(self, name) != default[name]]
        named = ", ".join(f"inpainting.{name}={getattr(self, name)!r}" for name in idle)
        require(not idle, f"inpainting.policy={self.policy!r} does not use {named}; leave out unused keys")
        chunks = f"inpainting.chunk_min={self.chunk_min} and inpainting.chunk_max={self.chunk_max}"
        require(1 <= self.chunk_min <= self.chunk_max, f"{chunks} must be ordered and at least 1")
        ratios = f"inpainting.ratio_min={self.ratio_min} and inpainting.ratio_max={self.ratio_max}"
        require(0 <= self.ratio_min <= self.ratio_max <= 1, f"{ratios} must be ordered within [0, 1]")
        noise = ", ".join(f"inpainting.{name}={getattr(self, name)}" for name in NOISE_KEYS if getattr(self, name))
        unused = f"inpainting.source='own' does not use {noise}; leave out unused keys"
        require(not noise or self.source == "solution", unused)
        both = self.tries and self.by_completion  # then the first completions of a group have the smallest ratios
        require(not both, f"inpainting.tries={self.tries} does not go with inpainting.by_completion=True; set one of them")


@flax.struct.dataclass
class Chunks:
    """Consecutive pieces of traces (reference solutions of problems). Each piece covers the positions [start, start + size)."""

    start: Array  # i32[b, c]
    size: Array  # i32[b, c], 0 for an empty chunk


def segment(keys: Array, trace_length: Array, max_length: int, chunk_min: int, chunk_max: int) -> Chunks:
    """Cuts traces (reference solutions) into chunks of random size, from `chunk_min` to `chunk_max` tokens. The lengths of the
    traces, int32 [b], are at most `max_length`. For each trace, the result has `max_length // chunk_min` chunks, but at least
    one. Chunks after the end of the trace are empty. A tail shorter than `chunk_min` belongs to no chunk. Traces with the same
    PRNG key and the same length are cut at the same positions."""
    count = max(1, max_length // chunk_min)
    draw = functools.partial(jax.random.randint, shape=(count,), minval=chunk_min, maxval=chunk_max + 1)
    size = jax.vmap(draw)(keys)
    start = jnp.cumsum(size, axis=1) - size
    size = jnp.minimum(size, trace_length[:, None] - start)
    return Chunks(start, jnp.where(size >= chunk_min, size, 0))


def revealed_count(chunks: Array, ratio: Array, round_up: bool) -> Array:
    """Returns how many chunks to reveal, int32 [b]. `chunks`, int32 [b], is the number of chunks, and `ratio`, float32 [b], is
    the share to reveal. The result is rounded up if `round_up` is True, and down otherwise. If it is rounded down to 0 although
    `ratio` is positive, one chunk is revealed, provided that there is one. 1e-5 is added before the floor function is applied,
    because in float32 100 * 0.53 is smaller than 53, and 5 * (1 - 0.6) is smaller than 2."""
    if round_up:
        return chunks - jnp.floor(chunks * (1 - ratio) + 1e-5).astype(jnp.int32)
    at_least = jnp.minimum(chunks, jnp.where(ratio > 0, 1, 0))
    return jnp.maximum(jnp.floor(chunks * ratio + 1e-5).astype(jnp.int32), at_least)


def choose(keys: Array, chunks: Chunks, ratio: Array, cfg: InpaintingConfig) -> Array:
    """Draws a uniform random subset of the chunks of each trace, and returns it as a mask, bool [b, c]. The chunks in the
    subset become hints. Each of the b traces has its own PRNG key in `keys`, and its own share of chunks to reveal in `ratio`,
    float32 [b]. If `cfg.exclude_answer` is False and the share is positive, the last chunk of the trace is always in the
    subset."""
    exists = chunks.size > 0
    order = jax.vmap(lambda key, row: jax.random.uniform(key, row.shape))(keys, exists)
    rank = jnp.argsort(jnp.argsort(jnp.where(exists, order, 2.0), axis=1), axis=1)
    number = exists.sum(axis=1)
    revealed = rank < revealed_count(number, ratio, cfg.round_up)[:, None]
    if not cfg.exclude_answer:
        last = jnp.arange(exists.shape[1]) == number[:, None] - 1
        revealed |= last & (ratio > 0)[:, None]
    return revealed & exists


def destinations(chunks: Chunks, revealed: Array, trace_length: Array, length: int, stretch: bool) -> Array:
    """Returns the canvas position where each chunk of a trace starts, int32 [b, c]. The values for chunks that are not revealed
    are meaningless. By default, a chunk keeps its position in the trace. With `stretch`, the gaps before revealed chunks grow
    by up to half of their length, as in the released code. All gaps except the first are then at most `MAX_GAP` positions
    long."""
    if not stretch:
        return chunks.start
    usable = max(0, length - FREE_TAIL)
    end = jnp.where(revealed, chunks.start + chunks.size, 0)
    previous_end = jnp.pad(jax.lax.cummax(end, axis=1)[:, :-1], ((0, 0), (1, 0)))
    is_first = revealed & (previous_end == 0)
    gap = jnp.asarray(stretched(usable))[jnp.minimum(trace_length, usable)[:, None], chunks.start - previous_end]
    gap = jnp.where(is_first, gap, jnp.minimum(gap, MAX_GAP))
    advance = jnp.where(revealed, gap + chunks.size, 0)
    return jnp.cumsum(advance, axis=1) - chunks.size


@functools.lru_cache(maxsize=4)
def stretched(usable: int) -> np.ndarray:
    """Returns a table of stretched gaps, int32 [usable + 1, usable + 1]. The entry [length, gap] is floor(factor * gap), where
    the factor is usable / length, clipped to [1, `MAX_STRETCH`], and length is the length of the trace. The table is computed
    in float64, as in the released code, because floor depends on rounding errors. For example, 226 / 164 * 82 in float64 is
    slightly smaller than the exact value 113. In float32, the rounding errors would affect other products."""
    lengths = np.arange(usable + 1)
    factor = np.clip(usable / np.maximum(lengths, 1), 1.0, MAX_STRETCH)
    return np.floor(factor[:, None] * lengths).astype(np.int32)


def overwrite(
    canvas: Array, trace: Array, hintable: Array, chunks: Chunks, revealed: Array, destination: Array
) -> tuple[Array, Array]:
    """Writes the revealed chunks of traces onto the canvas. Returns the new canvas, int32 [b, l], and the mask of hints, bool
    [b, l]. `canvas` and `trace` are int32 [b, l]. `revealed`, bool [b, c], marks the chunks to write, and `destination`, int32
    [b, c], holds the canvas position of each chunk. Drops tokens that would lie outside of the canvas, and tokens that must not
    be shown (False in `hintable`, bool [b, l])."""
    position = jnp.arange(canvas.shape[1])
    offset = position - destination[..., None]  # [b, c, l]
    inside = revealed[..., None] & (offset >= 0) & (offset < chunks.size[..., None])
    source = jnp.sum(jnp.where(inside, chunks.start[..., None] + offset, 0), axis=1)
    is_hint = inside.any(axis=1) & jnp.take_along_axis(hintable, source, axis=1)
    return jnp.where(is_hint, jnp.take_along_axis(trace, source, axis=1), canvas), is_hint


def prefix(trace_length: Array, hintable: Array, ratio: Array) -> Array:
    """Selects the first tokens of each trace (reference solution) as its hint, and returns them as a mask, bool [b, l]. Of the
    first `trace_length` tokens of the trace, those before the first token that must not be shown (False in `hintable`) are
    available. `ratio`, float32 [b], is the share of the available tokens to select. If `ratio` is positive and tokens are
    available, at least one is selected."""
    position = jnp.arange(hintable.shape[1])
    may_show = hintable & (position < trace_length[:, None])
    longest = jnp.cumprod(may_show, axis=1).sum(axis=1)
    return position < revealed_count(longest, ratio, round_up=False)[:, None]


def overwrite_in_place(canvas: Array, trace: Array, trace_length: Array, hintable: Array, chosen: Array) -> tuple[Array, Array]:
    """Writes chosen tokens of each trace (reference solution) onto the canvas, at the positions that they have in the trace.
    `chosen`, bool [b, l], marks these tokens. Skips tokens that must not be shown (False in `hintable`). Returns the new
    canvas, int32 [b, l], and the mask of hints, bool [b, l]."""
    is_hint = chosen & hintable & (jnp.arange(canvas.shape[1]) < trace_length[:, None])
    return jnp.where(is_hint, trace, canvas), is_hint


@functools.partial(jax.jit, static_argnames="cfg")
def inpaint(
    key: Array,
    problem_id: Array,
    canvas: Array,
    trace: Array,
    trace_length: Array,
    hintable: Array,
    cfg: InpaintingConfig,
    ratios: tuple[float, float] | None = None,
) -> tuple[Array, Array, Array]:
    """Writes hints onto the canvases of n problems with G completions each. IGPO adds this step to a rollout.

    Args:
        key: PRNG key. How a solution is cut into chunks depends on the key and the problem, and with cfg.by_completion also on
            the completion. The hint ratio (share of the solution to reveal) and the choice of the chunks to reveal depend on
            the key, the problem and the completion.
        problem_id: id of each problem, uint32 [n].
        canvas: canvases of length l, usually all MASK, int32 [n * G, l]. The canvases of the same problem are adjacent.
        trace, hintable: reference solutions, int32 [n, l], and a mask that is True for tokens that may be shown, bool [n, l].
        trace_length: number of leading tokens of each trace that are cut into chunks, int32 [n].
        ratios: minimum and width of the range of hint ratios, see `ratio_range`. The default is the range in cfg.

    Returns:
        The canvas with hints and the mask of hints, both [n * G, l], and the drawn ratios, float32 [n * G]."""
    length, group_size = canvas.shape[1], len(canvas) // len(problem_id)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    cut_key, row_key = jax.random.split(key)

    def completion_keys(key):
        return jax.vmap(fold, in_axes=(0, None))(fold(key, problem_id), jnp.arange(group_size)).reshape(-1)

    cut_keys = completion_keys(cut_key) if cfg.by_completion else jnp.repeat(fold(cut_key, problem_id), group_size)
    ratio_keys, choice_keys = jnp.moveaxis(jax.vmap(jax.random.split)(completion_keys(row_key)), 1, 0)

    least, width = ratio_range(None, cfg) if ratios is None else ratios
    ratio = jax.vmap(jax.random.uniform)(ratio_keys) * width + least
    if cfg.by_completion:
        ratio = jnp.sort(ratio.reshape(-1, group_size), axis=1).reshape(-1)
    trace, trace_length, hintable = (jnp.repeat(x, group_size, axis=0) for x in (trace, trace_length, hintable))
    if cfg.policy == "prefix":
        chosen = prefix(trace_length, hintable, ratio)
        return *overwrite_in_place(canvas, trace, trace_length, hintable, chosen), ratio
    cut_length = jnp.minimum(trace_length, max(0, length - FREE_TAIL)) if cfg.stretch else trace_length
    chunks = segment(cut_keys, cut_length, length, cfg.chunk_min, cfg.chunk_max)
    revealed = choose(choice_keys, chunks, ratio, cfg)
    destination = destinations(chunks, revealed, trace_length, length, cfg.stretch)
    return *overwrite(canvas, trace, hintable, chunks, revealed, destination), ratio


def max_replaced(cfg: InpaintingConfig, group_size: int) -> int:
    """Returns the largest number of completions that may be replaced in a group: floor(`replace_fraction` * G) for group size
    G."""
    return math.floor(cfg.replace_fraction * group_size + 1e-9)


def ratio_range(hint_ratio_center: float | None, cfg: InpaintingConfig) -> tuple[float, float]:
    """Returns the minimum and the width of the range of hint ratios (shares of a solution to reveal). If `hint_ratio_center` is
    None, the range is the configured one. Otherwise, the configured range is shifted so that its center is `hint_ratio_center`,
    and clipped to [0, 1]."""
    if hint_ratio_center is None:
        return cfg.ratio_min, cfg.ratio_max - cfg.ratio_min
    half = (cfg.ratio_max - cfg.ratio_min) / 2
    least, most = max(hint_ratio_center - half, 0.0), min(hint_ratio_center + half, 1.0)
    return least, most - least
