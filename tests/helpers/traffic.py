"""A closed form of the memory traffic of LLaDA's programs on GPUs, to compare with what `plan` reads from compiled programs.

Every product reads its operands and writes its result once. Operations between two products read and write each array once.
Traffic of activations is counted in arrays of the model's width: [positions, width] in bfloat16. m is the width of the MLP."""

from igpo_jax.config import Config
from igpo_jax.plan.programs import LLADA_8B

LAYERS, WIDTH, HEADS = LLADA_8B.layers, LLADA_8B.width, LLADA_8B.heads
M = LLADA_8B.mlp_width / WIDTH
MATRICES = [(1, 1)] * 4 + [(1, M)] * 2 + [(M, 1)]  # (in, out) of query, key, value, output, gate, up, down
WEIGHTS = 2 * WIDTH**2 * sum(a * b for a, b in MATRICES)  # bytes of one layer in bfloat16
PARAMETERS = 8.0e9
# Between products: two norms, the rotary embedding of query and key, the MLP's gate, two residual sums, attention.
FORWARD = 4 + 4 + 3 * M + 6 + 4
# Their gradients, and the sums of the gradients of what several matrices read.
BACKWARD = 6 + 4 + 5 * M + 6 + 8 + 9


def forward(rows: float, length: int, config: Config, adapters: bool, devices: int, queries: int | None = None) -> float:
    """Returns the bytes of a forward pass on one device. If `queries` is given, only so many positions of each row are
    computed, and the keys and values of the others are read from a cache."""
    positions = rows * (queries or length)
    products = sum(2 * a + 5 * b if adapters else a + b for a, b in MATRICES)
    activations = 2 * WIDTH * positions * (products + FORWARD)
    # A scan copies a layer's weights out of the stack. Over several devices, it copies a shard, gathers it, and reads all.
    weights = WEIGHTS * (3 if devices == 1 else 2 + 3 / devices)
    # Queries attend to keys and values that are copied out of the stack, completed with the fresh ones, and read.
    cache = 5 * 2 * 2 * WIDTH * rows * length if queries else 0
    return LAYERS * (activations + weights + cache + scores(rows, length, queries or length, config))


def scores(rows: float, length: int, queries: int, config: Config) -> float:
    """Returns the bytes of one layer's attention scores: float32 [rows, heads, queries, length], written, read by the softmax
    and converted. Only XLA's attention writes them to memory."""
    return rows * HEADS * queries * length * 12 if config.model.attention == "xla" else 0


def program_bytes(program: str, config: Config, devices: int) -> float:
    """Returns the bytes that one device reads and writes in `sample`, `score` or `update`."""
    length = config.data.prompt_buckets[-1] + config.sampler.completion_length
    adapters, rows = config.lora is not None, config.rl.prompts / devices
    if program == "sample":
        rows = rows * config.rl.group_size / config.rl.rollout_chunks
        steps = config.sampler.steps // config.sampler.blocks
        whole = forward(rows, length, config, adapters, devices)
        if config.sampler.cache == "none":
            return steps * whole
        return whole + (steps - 1) * forward(rows, length, config, adapters, devices, config.sampler.block_length)
    if program == "score":
        return forward(rows, length, config, adapters, devices) + forward(rows, length, config, False, devices)
    products = sum(6 * a + 3 * b if adapters else 2 * a + 2 * b for a, b in MATRICES)
    backward = LAYERS * 2 * WIDTH * rows * length * (products + BACKWARD)
    backward += LAYERS * (2 * scores(rows, length, length, config) + 3 * WEIGHTS)
    # All parameters: gradients in float32, masters and the second moment in float32, the first moment in bfloat16.
    trained = 0 if adapters else PARAMETERS * (4 + 4 + (4 + 2 * 4 + 2 * 4 + 2 * 2) / devices)
    return 2 * forward(rows, length, config, adapters, devices) + backward + trained  # remat=full computes the layers twice
