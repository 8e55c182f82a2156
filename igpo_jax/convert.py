"""python -m igpo_jax.convert --source=DIR --target=DIR [--format=model|huggingface|peft]
python -m igpo_jax.convert --source=DIR --target=DIR --as=A2DQwen3LMHeadModel [--mask_token=NAME]

Converts a model to another format. By default, converts a Hugging Face folder to a model folder of igpo_jax.
--format=huggingface converts a model folder or a training run to a Hugging Face folder, and merges the adapters of a run into
the weights. --format=peft writes the adapters of a training run in PEFT's format. The PyTorch code in LLaDA's and iLLaDA's
folders is copied unchanged; this code needs transformers 4. --as converts an autoregressive model to a masked
diffusion model of the given architecture, which is useful only after further training (docs/models.md)."""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install("interrupted; nothing was written")

import sys

import jax
from absl import flags, logging

from igpo_jax.cli import define_allow_nonfinite, define_trust, escape_controls, parse_arguments, run_command
from igpo_jax.config import with_tokenizer
from igpo_jax.run.bucket_runs import is_run
from igpo_jax.run.export import export_adapters, export_run
from igpo_jax.runtime import distributed
from igpo_jax.runtime.buckets import require_model
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.host import check_options, prepare_accelerators
from igpo_jax.runtime.installation import command_igpo
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.tokenizers import load_tokenizer
from igpo_jax.weights.folders import convert, export, is_model_folder
from igpo_jax.weights.huggingface import check_sha256, folder_model_config, masked_config

SOURCE = flags.DEFINE_string(
    "source", None, "A Hugging Face folder, a model's id on the hub, a model folder or a run's folder.", required=True
)
TARGET = flags.DEFINE_string("target", None, "The folder to write; it must not exist.", required=True)
FORMAT = flags.DEFINE_enum("format", "model", ["model", "huggingface", "peft"], "The target's format.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Type of the target's parameters; by default the source's.")
VERIFY = flags.DEFINE_string("verify", None, "First compare the source's files with the checksums of this release.")
AS = flags.DEFINE_string("as", None, "Architecture of the masked diffusion model that an autoregressive model becomes.")
MASK_TOKEN = flags.DEFINE_string(
    "mask_token", "", "With --as: the token (or its id) that becomes MASK; by default an unused one."
)
TRUST = define_trust()
ALLOW_NONFINITE = define_allow_nonfinite()
FORMATS = {"huggingface": ["model"], "model": ["huggingface"], "run": ["huggingface", "peft"]}  # of the target
WRITERS = {("huggingface", "model"): convert, ("model", "huggingface"): export}


def main(_):
    check_options()
    prepare_accelerators()
    distributed.initialize()
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    source, target = SOURCE.value, TARGET.value
    try:
        require_model(source, "--source")
        kind = "run" if is_run(source) else "model" if is_model_folder(source) else "huggingface"
        if VERIFY.value:
            files = ", ".join(check_sha256(source, VERIFY.value))
            print(escape_controls(f"{source}: as published: {files}"))
        mesh = make_mesh()
        with jax.set_mesh(mesh):
            require(AS.value or not MASK_TOKEN.value, "--mask_token goes with --as")
            if AS.value:
                require(
                    (kind, FORMAT.value) == ("huggingface", "model"), "--as makes a model folder from a Hugging Face folder"
                )
                start = masked_config(source, AS.value, MASK_TOKEN.value)
                convert(source, target, mesh, DTYPE.value, ALLOW_NONFINITE.value, start)
            elif (kind, FORMAT.value) == ("run", "peft"):
                export_adapters(source, target, mesh, TRUST.value, ALLOW_NONFINITE.value)
            elif (kind, FORMAT.value) == ("run", "huggingface"):
                export_run(source, target, mesh, DTYPE.value, TRUST.value, ALLOW_NONFINITE.value)
            elif (kind, FORMAT.value) in WRITERS:
                if jax.process_index() == 0:
                    warn_without_tokenizer(source)
                WRITERS[kind, FORMAT.value](source, target, mesh, DTYPE.value, ALLOW_NONFINITE.value)
            else:
                formats = " or ".join(f"--format={name}" for name in FORMATS[kind])
                raise ValueError(
                    f"{source} is a {kind} folder, of which --format={FORMAT.value} cannot be made; give {formats}"
                )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if jax.process_index() == 0:
        model = f"--model=MODEL --adapters={target}" if FORMAT.value == "peft" else f"--model={target}"
        print(escape_controls(f"written: {target}\nnext: {command_igpo()} generate {model} --prompt=..."))


def warn_without_tokenizer(folder: str) -> None:
    """Prints a warning if a model's folder has no usable tokenizer. The weights can be converted nevertheless."""
    model = folder_model_config(folder)
    try:
        with_tokenizer(model, load_tokenizer(folder, model.mask_id), folder)
    except ValueError as error:
        need = "add the tokenizer's files to the target; training, evaluation and generation need them"
        print(escape_controls(f"warning: {error}; {need}"), file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main, parse_arguments)
