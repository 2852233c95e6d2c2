"""Engines in the user's cache: under a key that states what they are valid for, each beside a JSON file of metadata.

An engine is native code. One is deserialised only if its metadata exists and fits, the file has the sha256 that the
metadata records, and both belong to this user and are writable by no other. Anything else is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diinn.runtime.engines import profiles
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.errors import InputError
from diinn.runtime.util.private_files import FileRejected, cache_folder, check_owner, read_own, replace

log = logging.getLogger(__name__)
FORMAT, VERSION = "diinn-engine", 3
LARGEST_METADATA = 2**20
LONGEST_BUILD = 24 * 3600  # seconds
VERDICT = {"rows", "tolerance", "compared", "at", "passed", "summary"}  # what ``verify.py`` writes


@dataclass(frozen=True)
class Identity:
    """What an engine is valid for, except for its shapes.

    onnx: sha256 of the graph; tensorrt: version; device: name of the GPU, which several Orins share
    capability: its compute capability; multiprocessors: how many it has; route: as in ``versions.Rules``
    """

    role: str
    onnx: str
    tensorrt: str
    device: str
    capability: str
    multiprocessors: int
    precision: str
    route: str


@dataclass(frozen=True)
class Key:
    """What an engine is kept under."""

    identity: Identity
    profile: Profile

    @property
    def name(self) -> str:
        """Name of its files, without ending."""
        text = json.dumps([asdict(self.identity), self.profile.plain()], sort_keys=True)
        return f"{self.identity.role}-{self.identity.precision}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class EngineMetadata:
    """What is recorded beside an engine.

    sha256, size: of the engine file; built: seconds since 1970; seconds: how long the build took
    verify: the verdict and table of ``verify.py``, empty until it ran
    """

    key: Key
    sha256: str
    size: int
    built: float
    seconds: float
    verify: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        fields = asdict(self) | {"format": FORMAT, "version": VERSION}
        fields["key"] = {"identity": asdict(self.key.identity), "profile": self.key.profile.plain()}
        return json.dumps(fields, indent=1) + "\n"


class Cache:
    """The engines of one folder."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder()

    def engine(self, key: Key) -> Path:
        return self.path / f"{key.name}.engine"

    def metadata_path(self, key: Key) -> Path:
        return self.path / f"{key.name}.json"

    def entries(self) -> list[tuple[Path, EngineMetadata | str]]:
        """Every engine file with its metadata, or what is wrong with that; newest first."""
        found: list[tuple[Path, EngineMetadata | str]] = []
        for path in sorted(self.path.glob("*.engine"), key=lambda p: -_modified(p)):
            try:
                found.append((path, _read_metadata(path.with_suffix(".json"))))
            except FileRejected as error:
                found.append((path, str(error)))
        return found

    def find(self, identity: Identity) -> list[EngineMetadata]:
        """The metadata of all engines of ``identity``, whatever their shapes; newest first."""
        found = [metadata for _, metadata in self.entries() if isinstance(metadata, EngineMetadata)]
        return [metadata for metadata in found if metadata.key.identity == identity]

    def refused(self, key: Key) -> bool:
        """Whether the engine of ``key`` is cached and was found wrong."""
        try:
            return not _read_metadata(self.metadata_path(key)).verify.get("passed", True)
        except FileRejected:
            return False

    def read(self, key: Key) -> tuple[bytes, EngineMetadata]:
        """The engine of ``key`` and its metadata. Raises FileRejected with what does not fit."""
        engine = self.engine(key)
        if not engine.exists():
            raise FileRejected(f"there is no {engine.name} in {self.path}")
        check_owner(self.path, "cache folder", self.path.stat())
        metadata = _read_metadata(self.metadata_path(key))
        if metadata.key != key:
            raise FileRejected(f"{engine.name} was built for something else than its name says")
        data = read_own(engine)  # the same bytes are hashed and deserialised: nothing can change in between
        found = hashlib.sha256(data).hexdigest()
        if found != metadata.sha256:
            raise FileRejected(f"{engine.name} has sha256 {found[:12]}…, its metadata says {metadata.sha256[:12]}…")
        return data, metadata

    def write(self, key: Key, data: bytes, seconds: float) -> EngineMetadata:
        """Keep an engine; a concurrent reader finds the old one, the complete new one, or none."""
        metadata = EngineMetadata(key, hashlib.sha256(data).hexdigest(), len(data), time.time(), seconds)
        with writing(self.path):
            self._prepare()
            self.metadata_path(key).unlink(missing_ok=True)  # so that the old engine is not used from here on
            replace(self.engine(key), data)
            replace(self.metadata_path(key), metadata.text().encode())
        return metadata

    def write_verdict(self, metadata: EngineMetadata, verify: Mapping[str, Any]) -> EngineMetadata:
        """Record what ``verify.py`` found, unless the engine was replaced or the cache cannot be written."""
        judged = EngineMetadata(metadata.key, metadata.sha256, metadata.size, metadata.built, metadata.seconds, verify)
        try:
            with self.lock(metadata.key):
                if _read_metadata(self.metadata_path(metadata.key)).sha256 == metadata.sha256:
                    with writing(self.path):
                        replace(self.metadata_path(metadata.key), judged.text().encode())
        except (InputError, FileRejected) as error:
            log.warning("the verdict is not kept: %s", error)
        return judged

    @contextlib.contextmanager
    def lock(self, key: Key) -> Iterator[Path]:
        """A lock held by one process at a time, released when the process ends; gives an empty folder to build in.

        The folder is removed with the lock, or when the next process takes it. Where files cannot be locked (some NFS)
        each process builds in a folder of its own.
        """
        draft = self.path / f".{key.name}.part"
        with contextlib.ExitStack() as ended:
            with writing(self.path):
                self._prepare()
                handle = os.open(self.path / f"{key.name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            ended.callback(os.close, handle)
            try:
                if not _locked(handle, wait=False):
                    log.info("%s: another process is building it: waiting", key.identity.role)
                    _locked(handle, wait=True)
            except OSError as error:
                log.info("%s: %s: two processes may build the same", self.path, error.strerror or error)
                with writing(self.path):
                    draft = Path(tempfile.mkdtemp(prefix=f"{draft.stem}-", suffix=".part", dir=self.path))
            ended.callback(shutil.rmtree, draft, ignore_errors=True)
            with writing(self.path):
                shutil.rmtree(draft, ignore_errors=True)  # of a build that was killed
                draft.mkdir(mode=0o700)
            yield draft

    def timing(self) -> Path:
        """Where measured kernel timings are kept between builds."""
        return self.path / "timing.cache"

    def remove(self, which: Path | None = None) -> int:
        """Delete one engine, or all and the timings, with their metadata; bytes freed. Touches nothing else."""
        ours = re.compile(r"((encoder|decoder)-(fp32|fp16|int8)-[0-9a-f]{32}\.(engine|json))|\.\w{8}\.part")
        files = [p for p in self.path.glob("*") if ours.fullmatch(p.name) and (which is None or p.stem == which.stem)]
        if which is None and self.timing().exists():
            files.append(self.timing())
        freed = 0
        with writing(self.path):
            for draft in self.path.glob(".*-*.part") if which is None else ():
                self._drop(draft)
            for path in files:
                freed += path.stat().st_size
                path.unlink()
        return freed

    def _drop(self, draft: Path) -> None:
        """Remove the folder of a build, unless that build goes on."""
        name = re.match(r"\.(\w+-\w+-[0-9a-f]+)", draft.name)
        if name is None:
            return
        try:
            with (self.path / f"{name[1]}.lock").open("a") as lock:
                over = _locked(lock.fileno(), wait=False)
        except OSError:  # no locks here
            over = time.time() - _modified(draft) > LONGEST_BUILD
        if over:
            shutil.rmtree(draft, ignore_errors=True)

    def _prepare(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(self.path, "cache folder", self.path.stat())


def _locked(handle: int, *, wait: bool) -> bool:
    """Lock an open file; False where another process has it. OSError where files cannot be locked."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of files in the cache at ``path`` become InputError within."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write to the engine cache {path}: {error.strerror or error}: "
            "set DIINN_CACHE to a folder of your own"
        ) from None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it went away meanwhile
        return 0.0


def _read_metadata(path: Path) -> EngineMetadata:
    if not path.exists():
        raise FileRejected(f"the engine has no metadata {path.name}")
    data = read_own(path, LARGEST_METADATA)
    try:
        fields = json.loads(data)
        if fields["format"] != FORMAT or fields["version"] != VERSION:
            raise FileRejected(f"{path.name} is of version {fields['version']!r}, this runtime reads {VERSION}")
        key = Key(Identity(**fields["key"]["identity"]), profiles.from_plain(fields["key"]["profile"]))
        verify = fields["verify"]
        if not isinstance(verify, dict) or not isinstance(fields["sha256"], str) or not _is_verdict(verify):
            raise TypeError("a field is of another type")
        size, built, seconds = (float(fields[name]) for name in ("size", "built", "seconds"))
        time.localtime(built)  # raises for a time that is none
        if not math.isfinite(seconds):
            raise ValueError(f"seconds = {seconds}")
        return EngineMetadata(key, fields["sha256"], int(size), built, seconds, verify)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, InputError) as error:
        raise FileRejected(f"{path.name} is damaged: {error}") from None


def _is_verdict(value: dict[str, Any]) -> bool:
    """Whether it is empty, or what ``verify.Verdict.plain`` makes."""
    if not value:
        return True
    numbers = (value.get("tolerance"), value.get("at"))
    texts = (value.get("compared"), value.get("summary"))
    rows = value.get("rows")
    return (
        value.keys() == VERDICT
        and isinstance(value["passed"], bool)
        and all(isinstance(n, float | int) for n in numbers)
        and all(isinstance(text, str) for text in texts)
        and isinstance(rows, list | tuple)
        and all(_is_row(row) for row in rows)
    )


def _is_row(value: Any) -> bool:
    sizes = ("frame", "out")
    return (
        isinstance(value, dict)
        and value.keys() == {*sizes, "batch", "largest", "rms"}
        and all(isinstance(value[n], list | tuple) and len(value[n]) == 2 for n in sizes)
        and all(isinstance(n, int) for name in sizes for n in value[name])
        and all(isinstance(value[n], float | int) for n in ("batch", "largest", "rms"))
    )
