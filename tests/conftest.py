"""Eight virtual CPU devices for every test, meshes over them, and one compilation cache for all processes."""

import gc
import importlib
import importlib.metadata
import math
import os
import pathlib
import shutil
import sys
import zlib

import hypothesis

from commands import QUICK, SELDOM

hypothesis.settings.register_profile("untimed", deadline=None)  # first calls compile or import
hypothesis.settings.load_profile("untimed")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK}"
COMPILED = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"
COMPILED_LIMIT = 2**30  # bytes


def kind_of_compiler() -> str:
    """Returns a key for the version of jaxlib and the kind of CPU, for which compiled programs are valid."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    flags = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))]
        if cpuinfo.exists()
        else []
    )
    return f"{importlib.metadata.version('jaxlib')}-{zlib.crc32(''.join(flags[:1]).encode()):08x}"


def compiled_programs() -> pathlib.Path:
    """Returns the compilation cache folder; it is cleared if it is too large or the compiler changed."""
    folder = COMPILED / kind_of_compiler()
    if COMPILED.exists():
        size = sum(file.stat().st_size for file in COMPILED.rglob("*") if file.is_file())
        if size > COMPILED_LIMIT or not folder.exists():
            shutil.rmtree(COMPILED)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # inherited by pytest's workers and by processes that tests start
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compiled_programs())
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest
from jax.sharding import AxisType, Mesh


def make_test_mesh(shape: tuple[int, int, int]) -> Mesh:
    return jax.make_mesh(
        shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[: math.prod(shape)]
    )


# Slowest files first: pytest-xdist distributes whole files, and a slow one at the end would leave cores idle.
LONGEST = (
    "end_to_end/test_bucket_runs.py end_to_end/test_resume.py test_benchmarks.py rl/test_whole_step.py plan/test_memory.py "
    "end_to_end/test_ungraded.py end_to_end/test_other_families.py weights/test_families.py end_to_end/test_lm_eval.py "
    "end_to_end/test_processes.py end_to_end/test_llada.py end_to_end/test_math_recipe.py faults/test_kills.py "
    "weights/test_folders.py test_docs.py rl/test_objective.py end_to_end/test_cached_rollouts.py "
    "model/test_against_torch.py model/test_parity.py end_to_end/test_hint_state.py launch/test_launch.py "
    "fuzz/test_hostile_files.py playground/test_browser.py test_api.py end_to_end/test_commands.py "
    "compare/test_runs.py plan/test_programs.py rl/test_likelihood.py rl/test_update.py diffusion/test_sampler.py "
    "rewrite/test_rewrite.py test_style.py"
).split()


def pytest_collection_modifyitems(items):
    place = {pathlib.Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish():
    """Exempts all objects so far from garbage collection, which would search these modules again and again. Collects seldom:
    tracing makes many objects and hardly any garbage, and collections took an eighth of the tests' CPU time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*SELDOM)


@pytest.fixture(autouse=True, scope="module")
def programs_are_forgotten():
    """Frees compiled programs. Each holds memory maps, and Linux allows 65,530 per process; all tests together need more."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def campaign(monkeypatch):
    """Returns a function that imports a module of tests/campaigns anew, given its name."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / "campaigns")

    def imported(name: str):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return imported


@pytest.fixture
def mesh_of():
    """Returns a function: shape -> mesh over the first devices."""
    return make_test_mesh


@pytest.fixture
def mesh():
    """Mesh of one device."""
    return make_test_mesh((1, 1, 1))
