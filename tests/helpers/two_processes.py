"""One of two processes: python two_processes.py RANK PORT SOURCE TARGET RESULTS. Converts, exports, loads and generates."""

import json
import os
import pathlib
import sys

from commands import QUICK

rank, port, source, target = int(sys.argv[1]), *sys.argv[2:5]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=2 {QUICK}"

import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)

import igpo_jax
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.weights.folders import convert, export

read = []
jax.monitoring.register_scalar_listener(
    lambda name, value, **_: read.append(value) if name.endswith("safetensors/bytes_read") else None
)
mesh = make_mesh(data=1, fsdp=2, tensor=2)
with jax.set_mesh(mesh):
    convert(source, f"{target}/model", mesh)
    bytes_read = sum(read)
    export(f"{target}/model", f"{target}/exported", mesh)
model = igpo_jax.load(f"{target}/model", mesh=mesh)
tokens = [done.tokens.tolist() for done in model.generate(["Hello", "two and two"], completion_length=16, block_length=8)]
score = model.score("Hello", " there").log_likelihood
infilled = model.infill(["The answer is [MASK:4] because"])[0].tokens.tolist()
result = {"bytes_read": bytes_read, "tokens": tokens, "score": score, "infilled": infilled}
pathlib.Path(sys.argv[5], f"{rank}.json").write_text(json.dumps(result))
