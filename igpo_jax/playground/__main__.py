"""python -m igpo_jax.playground --model=DIR [--host=127.0.0.1] [--port=8000]

Serves a local web page that shows, step by step, how a model completes a prompt or fills blanks in a text. The model is a
Hugging Face folder of a supported model (docs/models.md), a folder written by igpo_jax.convert, or the folder of a training
run. --help lists all options.
"""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install()

import sys
from typing import Any

from absl import flags, logging

from igpo_jax.cli import define_allow_nonfinite, define_trust, escape_controls, parse_arguments, run_command
from igpo_jax.runtime.installation import install_command
from igpo_jax.runtime.ports import listen

MODEL = flags.DEFINE_string("model", None, "The model's folder, or its id on the hub.", required=True)
ADAPTERS = flags.DEFINE_string("adapters", None, "A folder of adapters in PEFT's format.")
STAGE = flags.DEFINE_enum("stage", None, ["sft", "rl"], "For a run's folder: the stage whose newest checkpoint is loaded.")
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "By default float32 on CPUs and GPUs without bfloat16 (T4), otherwise bfloat16."
)
TRUST = define_trust()
ALLOW_NONFINITE = define_allow_nonfinite()
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "The address to listen at; the default accepts connections from this machine only."
)
PORT = flags.DEFINE_integer("port", 8000, "The port to listen at.", lower_bound=1, upper_bound=65535)
TIME_LIMIT = flags.DEFINE_integer(
    "time_limit", 600, "The longest time of a generation in seconds; others wait for it to end.", lower_bound=1
)


def main(_):
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    try:  # before JAX is imported and the model is loaded, which may take minutes
        listening = listen(HOST.value, PORT.value)
    except OSError as error:
        sys.exit(f"error: --host={HOST.value} --port={PORT.value}: {error}; give another port")
    from igpo_jax.runtime.host import prepare

    prepare()
    try:
        import uvicorn

        from igpo_jax.playground.connections import Connection
        from igpo_jax.playground.server import application
    except ImportError as error:
        sys.exit(f"error: {error.name} is not installed; the playground needs: {install_command('playground')}")
    from igpo_jax.api import load
    from igpo_jax.playground.fields import begin_with
    from igpo_jax.runtime.buckets import require_model

    try:
        options: dict[str, Any] = {"adapters": ADAPTERS.value, "dtype": DTYPE.value, "stage": STAGE.value}
        options |= {"trust": TRUST.value, "allow_nonfinite": ALLOW_NONFINITE.value}
        require_model(MODEL.value, "--model")
        model = load(MODEL.value, **options, needs="text")
        page = application(model, begin_with(MODEL.value, model, TRUST.value), HOST.value, TIME_LIMIT.value)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    host = f"[{HOST.value}]" if ":" in HOST.value else HOST.value
    print(escape_controls(f"http://{host}:{PORT.value}/\nOpen this address in a browser; ^C ends the playground."), flush=True)
    # uvloop, which uvicorn takes if it is installed, would keep signals from `interrupts`.
    own = {"http": Connection, "ws": "none", "proxy_headers": False}
    uvicorn.Server(uvicorn.Config(page, log_level="warning", loop="asyncio", **own)).run([listening])


if __name__ == "__main__":
    run_command(main, parse_arguments)
