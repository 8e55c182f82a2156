"""Creates folders of weights: a new folder appears only when it is complete, with copies of the small files of its source."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from igpo_jax.runtime import interrupts
from igpo_jax.runtime.bucket_folders import new_bucket_folder
from igpo_jax.runtime.buckets import WEIGHT_FILES, is_address, small_files
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.distributed import raise_on_all_hosts, sole_writer
from igpo_jax.runtime.files import hub_blobs, require_stored

ORIGIN = "origin.json"  # of a model folder: the Hugging Face folder or model that it was converted from


def copy_small_files(source: str | os.PathLike, target: pathlib.Path) -> None:
    """Copies the files of a model that are not weights, such as the configuration, the tokenizer, the modeling code and the
    license. Does not copy `ORIGIN`. Only process 0 copies files. Raises ValueError on all processes if `check_link` or
    `require_stored` refuses a file."""
    with raise_on_all_hosts():
        for file in sorted(small_files(source).iterdir()) if jax.process_index() == 0 else ():
            if file.is_file() and file.suffix not in WEIGHT_FILES and file.name != ORIGIN:
                require(file.name != "params", f"{file} has the name of a model folder's weights; remove or rename this file")
                check_link(file)
                require_stored(file)
                shutil.copyfile(file, target / file.name)


def check_link(file: pathlib.Path) -> None:
    """Raises ValueError if `file`, which will be copied or converted, is a symbolic link that leads out of its folder. The
    folder may come from an untrusted source, and such a link could lead to any file of the user. Links to the blobs of the same
    model in Hugging Face's cache are allowed."""
    folder = pathlib.Path(os.path.realpath(file.parent))
    found = pathlib.Path(os.path.realpath(file))
    if not any(found.is_relative_to(allowed) for allowed in (folder, *hub_blobs(folder))):
        remedy = "replace the link by a copy of that file if it belongs to the model"
        raise ValueError(f"{file} is a symbolic link to {found}, outside of its folder; {remedy}")


@contextlib.contextmanager
def new_folder(target: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Context manager that yields a temporary folder. Renames it to `target` if the body ends without an error, and deletes it
    otherwise. Raises ValueError if `target` exists, if another process is writing it, or if a link stands where the temporary
    folder shall be. If `target` is in a bucket, see `new_bucket_folder`."""
    if is_address(target):
        with new_bucket_folder(os.fspath(target)) as folder:
            yield folder
        return
    target = pathlib.Path(target).absolute()
    around = target.with_name(f"{target.name}.partial")  # holds the lock and the temporary folder
    partial, first = around / target.name, jax.process_index() == 0
    # A link in a folder of a stranger may lead to a folder of the user, in which `delete` would find the user's files.
    require(not around.is_symlink(), f"{around} is a symbolic link; remove it")

    def delete() -> None:
        if first:
            shutil.rmtree(partial, ignore_errors=True)

    def delete_around() -> None:
        if first:
            with contextlib.suppress(OSError):  # another process has taken the lock
                around.rmdir()

    with interrupts.before_end(delete_around), sole_writer(around):
        if target.exists() or target.is_symlink():
            raise ValueError(f"{target} exists already; give a folder that does not")
        delete()  # what a killed process may have left
        if first:
            partial.mkdir()
        multihost_utils.sync_global_devices("new_folder created")
        try:
            with interrupts.before_end(delete):
                yield partial
        except BaseException:
            delete()
            raise
        multihost_utils.sync_global_devices("new_folder written")
        if first:
            partial.rename(target)
        multihost_utils.sync_global_devices("new_folder renamed")
    delete_around()  # `sole_writer` keeps it if a killed process had made it
