"""The tokenizer of a run: that of the base model, or one trained on the run's problems."""

import pathlib
import tempfile

from igpo_jax import config as configuration
from igpo_jax.config import Config
from igpo_jax.run.missing_files import RESTORE
from igpo_jax.run.problems import Splits
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import atomic_write, read_bytes
from igpo_jax.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece


def train_tokenizer(problems: Splits, workdir: pathlib.Path, config: Config) -> None:
    """Trains a tokenizer on the problems of the run's first stage and writes it to `workdir`/tokenizer.model. Raises ValueError
    if another tokenizer is there. A run that was killed at its beginning has left an equal one."""
    first_stage = problems["sft" if "sft" in problems else "rl"]
    texts = (text for p in first_stage for text in (p.question, p.demonstration, p.trace))
    kind, size = config.tokenizer.kind, config.tokenizer.vocab_size
    file = workdir / "tokenizer.model"
    with tempfile.TemporaryDirectory() as folder:
        train_sentencepiece(texts, new := pathlib.Path(folder, file.name), kind=kind, vocab_size=size)
        is_other = file.is_file() and read_bytes(file) != new.read_bytes()
        require(not is_other, f"{file} is another tokenizer, which would be lost; remove it, or give another --workdir")
        atomic_write(file, new.read_bytes())


def run_tokenizer(workdir: pathlib.Path, config: Config) -> Tokenizer:
    """Loads the run's tokenizer from the folder `model.path`. Without `model.path`, loads the tokenizer that was trained when
    the run was first opened."""
    model, own = configuration.folder_model(config), workdir / "tokenizer.model"
    require(model or own.is_file(), f"{own}, with which the run began, is missing; {RESTORE}")
    return load_tokenizer(config.model.path, model.mask_id) if model else load_tokenizer(own)
