"""python -m igpo_jax.convert --source=DIR --target=DIR [--format=model|huggingface]

Converts between Hugging Face folders of LLaDA or iLLaDA and this project's model folders.
"""

import sys

import jax
from absl import app, flags, logging

from igpo_jax.model.checkpoints import convert, export
from igpo_jax.model.huggingface import check_sha256
from igpo_jax.runtime.mesh import make_mesh

SOURCE = flags.DEFINE_string("source", None, "A Hugging Face folder; for --format=huggingface a model folder.", required=True)
TARGET = flags.DEFINE_string("target", None, "The folder to write; it must not exist.", required=True)
FORMAT = flags.DEFINE_enum("format", "model", ["model", "huggingface"], "What the target shall be.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the target's parameters; by default the source's.")
VERIFY = flags.DEFINE_string("verify", None, "Compare the source's files with the sums of this release first.")


def main(_):
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    try:
        if VERIFY.value:
            print(f"{SOURCE.value}: as published: {', '.join(check_sha256(SOURCE.value, VERIFY.value))}")
        mesh = make_mesh()
        with jax.set_mesh(mesh):
            (convert if FORMAT.value == "model" else export)(SOURCE.value, TARGET.value, mesh, DTYPE.value)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(TARGET.value)


if __name__ == "__main__":
    app.run(main)
