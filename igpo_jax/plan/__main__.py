"""python -m igpo_jax.plan --config=math.py --topology=v5e:4x4 [--slices=2] [--config.key=value ...] [--json]

Checks whether a training run fits into device memory, before you rent the devices. Compiles the run's programs on this machine
for a TPU topology (needs the optional dependencies "tpu"), for GPUs such as h100:8 (needs the optional dependencies
"plan-gpu"), or for the devices that are present. Prints memory, FLOPs, communication and estimated times. Reads no data and no
weights. If there are several prompt buckets, also estimates the time of an iteration with prompts of common lengths
(--lengths). With --tune, finds faster settings."""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install()

import json
import math
import pathlib
import sys

from absl import flags

from igpo_jax import config as configuration
from igpo_jax.cli import define_config, define_json, escape_controls, parse_flags, run_command, tell
from igpo_jax.data.buckets import DEFAULT_LENGTHS, read_lengths
from igpo_jax.plan.advice import plan, remat_choice
from igpo_jax.plan.devices import topology_devices
from igpo_jax.plan.text import as_advice, as_text
from igpo_jax.plan.tune import tune
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.mesh import make_mesh

CONFIG = define_config()
TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5e:4x4 or h100:8; the devices that are here by default.")
SLICES = flags.DEFINE_integer("slices", 1, "How many slices of the TPU topology, or hosts with these GPUs.", lower_bound=1)
PROGRAMS = flags.DEFINE_list("programs", [], "Only these; by default all that the run calls.")
LENGTHS = flags.DEFINE_string(
    "lengths", None, "Prompt lengths that inspect_data has written; by default those of GSM8K and MATH if model.path is set."
)
REMAT = flags.DEFINE_bool("remat", False, "Compile the update with every model.remat, too, and say which to take.")
TUNE = flags.DEFINE_bool("tune", False, "Find the settings for which an RL iteration is estimated to be fastest.")
APPROXIMATE = flags.DEFINE_bool("allow_approximate", False, "With --tune: also try cached samplers, which are approximate.")
JSON = define_json()


def main(_):
    try:
        config = configuration.parse(CONFIG.value)
        if SLICES.value > 1 and not TOPOLOGY.value:
            raise ValueError(f"--slices={SLICES.value} needs a --topology, of which there are so many")
        devices = topology_devices(TOPOLOGY.value, SLICES.value) if TOPOLOGY.value else None
        mesh = make_mesh(**vars(config.mesh), devices=devices)
        # The shipped lengths were counted with a vocabulary like that of a model's folder.
        file = pathlib.Path(LENGTHS.value) if LENGTHS.value else DEFAULT_LENGTHS if config.model.path else None
        lengths = read_lengths(file) if file else None
        if TUNE.value:
            tuned = tune(config, mesh, lengths, APPROXIMATE.value, tell)
            # JSON has no infinite number, which stands for a program that does not compile.
            finite = {part: seconds if math.isfinite(seconds) else None for part, seconds in tuned["before"].items()}
            print(escape_controls(json.dumps(tuned | {"before": finite}, indent=2) if JSON.value else as_advice(tuned)))
            return
        require(not APPROXIMATE.value, "--allow_approximate goes with --tune")
        result = plan(config, mesh, PROGRAMS.value, tell, lengths)
        result["here"] = not TOPOLOGY.value
        if "rollouts" in result:
            result["rollouts"]["prompts"] = LENGTHS.value or "GSM8K and MATH"
        if REMAT.value:
            result["remat"] = remat_choice(config, mesh, lengths=lengths)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(escape_controls(json.dumps(result, indent=2) if JSON.value else as_text(result)))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run_command(main, parse_flags)
