"""A cache of the Hugging Face hub, as huggingface_hub lays it out."""

import pathlib
import shutil

COMMIT = "0f2787f2d87eac5eed8a087d5ecd24277e6255b2"


def write_hub_cache(home: pathlib.Path, hub_id: str, folder: pathlib.Path) -> pathlib.Path:
    """Puts the files of a model's folder into the cache under HF_HOME=`home`. Returns the folder of the snapshot, in which every
    file is a link to a blob."""
    repository = home / "hub" / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for part in (repository / "blobs", repository / "refs", snapshot):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot
