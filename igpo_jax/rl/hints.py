"""Hints: pieces of the known solution, written into the canvas before denoising (igpo_method.md 2.3; paper Eq. 4).

segment -> choose -> place -> overwrite; every function works on whole batches and compiles once.
Where the paper and the released code disagree, the paper is the default and REF names the other.
"""

import dataclasses
import functools
import math

import flax
import jax
import jax.numpy as jnp

FREE_TAIL = 30  # REF: the last positions of the canvas never hold hints
MAX_GAP = 100  # REF: of stretched gaps between chunks
MAX_STRETCH = 1.5  # REF
OF_HINTS = ("ratio_min", "ratio_max", "curriculum", "source", "exclude_answer")
OF_CHUNKS = ("chunk_min", "chunk_max", "round_up", "stretch")
SOURCES = ("solution", "own")


@dataclasses.dataclass(frozen=True)
class InpaintingConfig:
    """Switches of igpo_method.md section 9; the defaults are PAPER."""

    enabled: bool = True
    # What a second try starts from. chunks: random pieces of the solution, all of it with ratio_min=ratio_max=1. prefix: its
    # beginning, up to the first token that may not be shown at most. none: nothing, the baseline of as many samples.
    policy: str = "chunks"
    # Whose solution. own: the newest correct first try of the same problem; without one there is no second try.
    source: str = "solution"
    # How fast the ratios move, all together, to where half of the second tries are correct, see `next_hint_ratio_center`; 0: they stay.
    curriculum: float = 0.0
    chunk_min: int = 5
    chunk_max: int = 10
    ratio_min: float = 0.2
    ratio_max: float = 0.6
    replace_fraction: float = 0.5  # lambda: at most this share of a group is replaced
    exclude_answer: bool = True  # REF: False, and then the last chunk is always revealed
    round_up: bool = False  # reveal floor(ratio * N) chunks and at least one; REF: N - floor(N * (1 - ratio))
    stretch: bool = False  # hints keep their place in the trace; REF: True spreads them over the canvas
    # Chunks are cut once per problem, ratios are independent, and the last answers of a group are replaced; REF: True, and
    # then they are cut for every completion, a group's ratios ascend, and its first answers are replaced.
    by_completion: bool = False

    def __post_init__(self):
        for key, known in (("policy", ("chunks", *IN_PLACE, "none")), ("source", SOURCES)):
            if getattr(self, key) not in known:
                raise ValueError(f"inpainting.{key}={getattr(self, key)!r} is none of {', '.join(known)}")
        default = {field.name: field.default for field in dataclasses.fields(self)}
        unused = {"chunks": (), "none": OF_HINTS + OF_CHUNKS}.get(self.policy, OF_CHUNKS)
        idle = [name for name in unused if getattr(self, name) != default[name]]
        if idle:
            named = ", ".join(f"inpainting.{name}={getattr(self, name)!r}" for name in idle)
            raise ValueError(f"inpainting.policy={self.policy!r} does not use {named}; leave out what is not used")
        if not 0 <= self.curriculum < math.inf:
            raise ValueError(f"inpainting.curriculum={self.curriculum} must not be negative, nor infinite")
        if not 1 <= self.chunk_min <= self.chunk_max:
            raise ValueError(
                f"inpainting.chunk_min={self.chunk_min} and inpainting.chunk_max={self.chunk_max} must be ordered and "
                "at least 1"
            )
        if not 0 <= self.ratio_min <= self.ratio_max <= 1:
            raise ValueError(
                f"inpainting.ratio_min={self.ratio_min} and inpainting.ratio_max={self.ratio_max} must be ordered "
                "within [0, 1]"
            )
        if not 0 <= self.replace_fraction <= 1:
            raise ValueError(f"inpainting.replace_fraction={self.replace_fraction} must lie in [0, 1]")


@flax.struct.dataclass
class Chunks:
    """Pieces [start, start + size) of a trace, in order: int32 [b, c] each. size 0: no chunk."""

    start: jax.Array
    size: jax.Array


def segment(keys: jax.Array, trace_length: jax.Array, max_length: int, chunk_min: int, chunk_max: int) -> Chunks:
    """Cuts traces into chunks of random size; a tail shorter than `chunk_min` belongs to no chunk.

    Args:
        keys: [b]; rows with the same key and length are cut alike.
        trace_length: int32 [b], at most `max_length`.

    Returns:
        `max_length // chunk_min` chunks a row.
    """
    count = max(1, max_length // chunk_min)
    draw = functools.partial(jax.random.randint, shape=(count,), minval=chunk_min, maxval=chunk_max + 1)
    size = jax.vmap(draw)(keys)
    start = jnp.cumsum(size, axis=1) - size
    size = jnp.minimum(size, trace_length[:, None] - start)
    return Chunks(start, jnp.where(size >= chunk_min, size, 0))


def revealed_count(chunks: jax.Array, ratio: jax.Array, round_up: bool) -> jax.Array:
    """How many of a row's chunks are revealed: int32 [b] from int32 and float32 [b]. In float32 100 * 0.53 is below 53, and
    5 * (1 - 0.6) below 2, so a little is added before rounding down."""
    if round_up:
        return chunks - jnp.floor(chunks * (1 - ratio) + 1e-5).astype(jnp.int32)
    at_least = jnp.minimum(chunks, jnp.where(ratio > 0, 1, 0))
    return jnp.maximum(jnp.floor(chunks * ratio + 1e-5).astype(jnp.int32), at_least)


def choose(keys: jax.Array, chunks: Chunks, ratio: jax.Array, cfg: InpaintingConfig) -> jax.Array:
    """A uniform random subset of the chunks: bool [b, c].

    Args:
        keys: [b].
        ratio: float32 [b], the share to reveal.
    """
    exists = chunks.size > 0
    order = jax.vmap(lambda key, row: jax.random.uniform(key, row.shape))(keys, exists)
    rank = jnp.argsort(jnp.argsort(jnp.where(exists, order, 2.0), axis=1), axis=1)
    number = exists.sum(axis=1)
    revealed = rank < revealed_count(number, ratio, cfg.round_up)[:, None]
    if not cfg.exclude_answer:
        last = jnp.arange(exists.shape[1]) == number[:, None] - 1
        revealed |= last & (ratio > 0)[:, None]
    return revealed & exists


def destinations(chunks: Chunks, revealed: jax.Array, trace_length: jax.Array, length: int, stretch: bool) -> jax.Array:
    """Where each chunk begins on the canvas, int32 [b, c]; meaningful for the revealed ones.

    PAPER: where it begins in the trace. REF: gaps between revealed chunks grow by up to half, within limits.
    """
    if not stretch:
        return chunks.start
    usable = max(0, length - FREE_TAIL)
    factor = jnp.clip(usable / jnp.maximum(trace_length, 1), 1.0, MAX_STRETCH)[:, None]
    end = jnp.where(revealed, chunks.start + chunks.size, 0)
    previous_end = jnp.pad(jax.lax.cummax(end, axis=1)[:, :-1], ((0, 0), (1, 0)))
    is_first = revealed & (previous_end == 0)
    gap = jnp.floor(factor * (chunks.start - previous_end)).astype(jnp.int32)
    gap = jnp.where(is_first, gap, jnp.minimum(gap, MAX_GAP))
    advance = jnp.where(revealed, gap + chunks.size, 0)
    return jnp.cumsum(advance, axis=1) - chunks.size


def overwrite(
    canvas: jax.Array,
    trace: jax.Array,
    hintable: jax.Array,
    chunks: Chunks,
    revealed: jax.Array,
    destination: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Writes the revealed chunks over the canvas; what falls outside of it is dropped.

    Args:
        canvas, trace: int32 [b, l]. hintable: bool [b, l], tokens of the trace that may be shown.
        chunks, revealed, destination: [b, c].

    Returns:
        The canvas and the positions that were written, bool [b, l].
    """
    position = jnp.arange(canvas.shape[1])
    offset = position - destination[..., None]  # [b, c, l]
    inside = revealed[..., None] & (offset >= 0) & (offset < chunks.size[..., None])
    source = jnp.sum(jnp.where(inside, chunks.start[..., None] + offset, 0), axis=1)
    is_hint = inside.any(axis=1) & jnp.take_along_axis(hintable, source, axis=1)
    return jnp.where(is_hint, jnp.take_along_axis(trace, source, axis=1), canvas), is_hint


def prefix(keys: jax.Array, trace_length: jax.Array, hintable: jax.Array, ratio: jax.Array) -> jax.Array:
    """The first tokens of each trace, bool [b, l]: the share `ratio` of those before the first that may not be shown.

    Args:
        keys: [b], not used. trace_length: int32 [b]. hintable: bool [b, l]. ratio: float32 [b]; above 0 at least one token is
            shown.
    """
    position = jnp.arange(hintable.shape[1])
    may_show = hintable & (position < trace_length[:, None])
    longest = jnp.cumprod(may_show, axis=1).sum(axis=1)
    return position < revealed_count(longest, ratio, round_up=False)[:, None]


# Policies whose hints stay where they are in the trace: (keys of the completions, trace_length, hintable, ratio) -> which
# tokens are shown, see `prefix`.
IN_PLACE = {"prefix": prefix}


@functools.partial(jax.jit, static_argnames=("group_size", "cfg"))
def inpaint(
    key: jax.Array,
    problem_id: jax.Array,
    canvas: jax.Array,
    trace: jax.Array,
    trace_length: jax.Array,
    hintable: jax.Array,
    group_size: int,
    cfg: InpaintingConfig,
    ratios: tuple[float, float] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hints for G completions of each problem: the step that IGPO adds to a rollout.

    Args:
        key: of the iteration; segmentation keys belong to the problem, unless cfg.by_completion, ratio and choice keys to
            the completion.
        problem_id: uint32 [n].
        canvas: int32 [n * G, l], rows of a problem adjacent; usually all MASK.
        trace: int32 [n, l]. trace_length: int32 [n], of the part that is cut into chunks. hintable: bool [n, l].
        group_size, cfg: static.
        ratios: see `ratio_range`; by default those of cfg.

    Returns:
        The canvas with hints and the hint mask, [n * G, l], and the ratios that were drawn, float32 [n * G].
    """
    length = canvas.shape[1]
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    cut_key, row_key = jax.random.split(key)

    def keys_of_completions(key):
        return jax.vmap(fold, in_axes=(0, None))(fold(key, problem_id), jnp.arange(group_size)).reshape(-1)

    row_keys = keys_of_completions(row_key)
    cut_keys = keys_of_completions(cut_key) if cfg.by_completion else jnp.repeat(fold(cut_key, problem_id), group_size)
    ratio_keys, choice_keys = jnp.moveaxis(jax.vmap(jax.random.split)(row_keys), 1, 0)

    least, width = ratio_range(None, cfg) if ratios is None else ratios
    ratio = jax.vmap(jax.random.uniform)(ratio_keys) * width + least
    if cfg.by_completion:
        ratio = jnp.sort(ratio.reshape(-1, group_size), axis=1).reshape(-1)
    trace, trace_length, hintable = (jnp.repeat(x, group_size, axis=0) for x in (trace, trace_length, hintable))
    if cfg.policy in IN_PLACE:
        may_show = hintable & (jnp.arange(length) < trace_length[:, None])
        is_hint = IN_PLACE[cfg.policy](choice_keys, trace_length, hintable, ratio) & may_show
        return jnp.where(is_hint, trace, canvas), is_hint, ratio
    cut_length = jnp.minimum(trace_length, max(0, length - FREE_TAIL)) if cfg.stretch else trace_length
    chunks = segment(cut_keys, cut_length, length, cfg.chunk_min, cfg.chunk_max)
    revealed = choose(choice_keys, chunks, ratio, cfg)
    destination = destinations(chunks, revealed, trace_length, length, cfg.stretch)
    canvas, is_hint = overwrite(canvas, trace, hintable, chunks, revealed, destination)
    return canvas, is_hint, ratio


def max_replaced(cfg: InpaintingConfig, group_size: int) -> int:
    """floor(lambda * G) completions of a group may be swapped."""
    return math.floor(cfg.replace_fraction * group_size + 1e-9)


def ratio_range(hint_ratio_center: float | None, cfg: InpaintingConfig) -> tuple[float, float]:
    """The least ratio and the width of the range that ratios are drawn from: the configured range, or, with a centre, one as
    wide around it, within [0, 1]."""
    if hint_ratio_center is None:
        return cfg.ratio_min, cfg.ratio_max - cfg.ratio_min
    half = (cfg.ratio_max - cfg.ratio_min) / 2
    least, most = max(hint_ratio_center - half, 0.0), min(hint_ratio_center + half, 1.0)
    return least, most - least
