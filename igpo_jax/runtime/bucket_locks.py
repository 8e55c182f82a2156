"""Locks that keep a second process from writing into the same folder of a bucket."""

import contextlib
import json
import logging
import os
import pathlib
import threading
import time
import uuid
from typing import Any

from igpo_jax.runtime import interrupts
from igpo_jax.runtime.buckets import BucketError, explained_errors, filesystem
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import parse_json
from igpo_jax.runtime.locks import describe_holder, holder_of, may_run, not_own, this_process

HEARTBEAT = 20.0  # seconds between two writes of the lock by its holder
PATIENCE = 90.0  # seconds without a write after which the holder counts as gone

log = logging.getLogger(__name__)


class BucketLock(contextlib.AbstractContextManager):
    """Context manager that holds the lock `address`/.lock, an object in a bucket. The storage service creates the object only
    if it does not exist, so that only one process succeeds. The holder writes the object again every `HEARTBEAT` seconds, on
    condition that nobody else has written it.

    If the lock is taken, waits for up to `PATIENCE` seconds. If the holder writes the lock meanwhile, raises a ValueError that
    names the holder. Otherwise, takes the lock over, because the holder has ended, for example by a preemption. Clocks of
    different machines are not compared. If the holder was a process of this machine (or of this container) that has ended, the
    lock is taken over at once. Raises ValueError if another program has written the object."""

    def __init__(self, address: str):
        self._object = f"{address}/.lock"
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self.lost = ""  # a message if another process has taken the lock over

    def __enter__(self):
        self._generation = self._acquire()
        self._cleanup = contextlib.ExitStack()
        self._cleanup.enter_context(interrupts.before_end(self._release))
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._cleanup.close()
        self._release()

    def check(self) -> None:
        """Raises ValueError if another process has taken the lock over. Call this function before writing into the folder."""
        self._renew()
        require(not self.lost, self.lost)

    def _acquire(self) -> str:
        while True:
            generation = self._write("0")
            if generation:
                return generation
            found = self._read()
            if found is None:  # deleted meanwhile
                continue
            generation, holder = found
            require(holder, not_own(self._object))
            if holder.get("machine") != _machine() or may_run(holder):
                self._wait(generation, holder)
            self._delete(generation)

    def _wait(self, generation: str, holder: dict[str, Any]) -> None:
        """Waits until the lock is deleted, or until its holder has not written it for `PATIENCE` seconds. Raises ValueError if
        the holder writes the lock again."""
        log.warning("%s is held by %s; waiting %d seconds for a sign of it", self._object, describe_holder(holder), PATIENCE)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(min(HEARTBEAT / 4, max(0.0, end - time.monotonic())))
            found = self._read()
            if found is None:
                return
            require(found[0] == generation, self._refusal(found[1]))

    def _refusal(self, holder: dict[str, Any]) -> str:
        folder = self._object.removesuffix("/.lock")
        return f"{folder} is being written by {describe_holder(holder)}; wait until it ends, end it, or give another folder"

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                self._renew()
            except BucketError as error:
                log.warning("%s; trying again", error)
            if self.lost:
                log.warning(self.lost)
                return

    def _renew(self) -> None:
        with self._writing:
            if not self.lost:
                generation = self._write(self._generation)
                if generation is None:
                    self.lost = f"another process has taken over {self._object}; this process writes nothing more"
                else:
                    self._generation = generation

    def _write(self, generation: str) -> str | None:
        """Writes the lock on condition that it has the given generation. The generation "0" means that the lock does not exist.
        Returns the new generation of the lock, or None if the condition is not met."""
        files = filesystem()
        bucket, name, _ = files.split_path(self._object)
        content = json.dumps(this_process() | {"machine": _machine(), "beat": time.time_ns()}).encode()
        options: dict[str, Any] = {"uploadType": "media", "name": name, "ifGenerationMatch": generation}
        with explained_errors(self._object, "write"):
            try:
                path = (
                    f"{files._location}/upload/storage/v1/b/{bucket}/o"  # gcsfs can only write on condition that nothing exists
                )
                return files.call("POST", path, data=content, json_out=True, **options)["generation"]
            except FileExistsError:  # the condition does not hold
                pass
        found = self._read()
        written = found is not None and found[1] == json.loads(content)  # a repeated request, whose first reply was lost
        return found[0] if found is not None and written else None

    def _read(self) -> tuple[str, dict[str, Any]] | None:
        """Returns the generation of the lock and its content, which is {} if another program has written it. Returns None if
        there is no lock."""
        files = filesystem()
        with explained_errors(self._object, "read"):
            try:
                files.invalidate_cache()
                generation = str(files.info(self._object)["generation"])
                text = files.cat_file(self._object)
            except FileNotFoundError:
                return None
        with contextlib.suppress(ValueError):
            return generation, holder_of(parse_json(text, self._object))
        return generation, {}

    def _delete(self, generation: str) -> None:
        files = filesystem()
        with explained_errors(self._object, "delete"), contextlib.suppress(FileNotFoundError, FileExistsError):
            files.call("DELETE", "b/{}/o/{}", *files.split_path(self._object)[:2], ifGenerationMatch=generation)

    def _release(self) -> None:
        if not self.lost:
            with contextlib.suppress(Exception):
                self._delete(self._generation)


def _machine() -> str:
    """Returns a text that differs between machines, between starts of a machine, and between containers, whose process ids are
    independent of each other. On systems other than Linux, where this information is missing, returns a random text."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return str(uuid.uuid4())
