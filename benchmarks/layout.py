"""Compares the layouts of sampling, and four prompt buckets with one, on a mesh of eight devices (emulated ones on a CPU).

    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/layout.py [--output=FILE]

A rollout samples prompts as long as those of GSM8K and MATH, divided by 4, with random weights, with and without a cache. The
baseline is the layout of training, whose weights are sharded over fsdp, with all prompts padded to the longest. Asserts that all
layouts write the same tokens. Emulated devices share the cores and the memory, so an exchange costs a copy within the memory.
"""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

import comparison
from igpo_jax.data.buckets import DEFAULT_LENGTHS, read_lengths
from igpo_jax.diffusion.batches import Batching, Requests, complete
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.transformer import shardings
from igpo_jax.run.layout import Load, mesh_for_sampling
from igpo_jax.training.policy import Policy

DECODE = DecodeConfig(completion_length=64, block_length=16, steps=16, temperature=1.0)
BUCKETS, PROMPTS, GROUP, CHUNKS = (32, 64, 96, 160), 8, 4, 4
LAYOUTS = ("train", "auto", "tensor")
SHARED = 2  # devices that share a copy, with the layout "tensor"


def requests_of(cfg) -> Requests:
    """Returns the requests of a rollout: GROUP completions for each of PROMPTS prompts."""
    draw, longest = np.random.default_rng(0), BUCKETS[-1]
    lengths = np.minimum(np.sort(draw.choice(read_lengths(DEFAULT_LENGTHS), PROMPTS)) // 4, longest)
    tokens = np.repeat(draw.integers(3, cfg.vocab_size, (PROMPTS, longest)).astype(np.int32), GROUP, axis=0)
    mask = np.repeat(np.arange(longest) >= longest - lengths[:, None], GROUP, axis=0)
    canvas = np.full((len(tokens), DECODE.completion_length), cfg.mask_id, np.int32)
    ids = np.repeat(np.arange(PROMPTS, dtype=np.uint32), GROUP)
    return Requests(tokens, mask, canvas, ids, np.tile(np.arange(GROUP, dtype=np.uint32), PROMPTS))


def mesh_of(layout: str, cfg, mesh: Mesh, decode: DecodeConfig) -> Mesh:
    """Returns the mesh on which a rollout with this layout is sampled."""
    if layout == "train":
        return mesh
    if layout == "tensor":
        return Mesh(mesh.devices.reshape(-1, 1, SHARED), mesh.axis_names)
    load = Load(decode, PROMPTS * GROUP // CHUNKS, BUCKETS[-1] + decode.completion_length)
    return mesh_for_sampling(cfg, None, mesh, load)


def main(argv: list[str] | None = None) -> list[dict]:
    arguments = comparison.parser_with_model(__doc__, repetitions=3).parse_args(argv)
    cfg, results = comparison.model_of(arguments), []
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(1, 8, 1), comparison.AXES)
    params = jax.device_put(comparison.random_params(0, cfg), shardings(cfg, mesh))
    requests, tokens = requests_of(cfg), {}

    def rollout(name: str, buckets: tuple[int, ...], decode: DecodeConfig):
        """Returns a function that copies the weights and samples one rollout."""
        other = mesh_of(name, cfg, mesh, decode)

        def run():
            laid_out = params if other is mesh else Policy(cfg).copy_to(params, other)
            batching = Batching(other, PROMPTS * GROUP // CHUNKS, buckets)
            with jax.set_mesh(other):
                for rows, done in complete(laid_out, requests, jax.random.key(1), cfg, decode, batching):
                    tokens.setdefault((name, buckets, decode.cache), {})[rows[0]] = done.tokens

        return run

    for cache in ("none", "dual"):
        decode = dataclasses.replace(DECODE, cache=cache)
        first = ("train", BUCKETS[-1:])
        cases = [first, *((name, BUCKETS) for name in LAYOUTS)]
        functions = [rollout(*case, decode) for case in cases]
        for function in functions:
            function()
        seconds = comparison.seconds_in_turn(functions, arguments.repetitions)
        expected = tokens[*cases[1], cache]
        for (name, buckets), of in list(zip(cases, seconds, strict=True))[1:]:
            same = np.mean([np.mean(expected[row] == found) for row, found in tokens[name, buckets, cache].items()])
            assert same > 0.99, f"{name}, cache {cache}: only {same:.2%} of the tokens are those of the layout train"
            measured = {"tokens": PROMPTS * GROUP * DECODE.completion_length, "model_flops": 0, "buckets": buckets}
            measured |= {"baseline": "train, one bucket", "equal_tokens": float(same)} | comparison.ratio_of(seconds[0], of)
            measured["sampling_mesh"] = dict(mesh_of(name, cfg, mesh, decode).shape)
            measured["ratio_to_train"] = comparison.ratio_of(seconds[1], of)["ratio"]
            results.append(comparison.report(f"{name}, cache {cache}", cfg, measured))
    comparison.write_cases(results, arguments.output)
    return results


if __name__ == "__main__":
    main()
