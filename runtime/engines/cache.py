"""Engines in the user's cache: under a key that says what they hold for, beside a side-car that says what they are.

An engine is native code. One is deserialised only if its side-car is there and fits, the file has the sha256 that the
side-car records, and both belong to this user and can be written by nobody else. Anything else is built anew.
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
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diinn.runtime.engines import profiles
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.errors import DiinnError, InputError

log = logging.getLogger(__name__)
FORMAT, VERSION = "diinn-engine", 2
LARGEST_SIDE_CAR = 2**20
LONGEST_BUILD = 24 * 3600  # seconds
VERDICT = {"rows", "tolerance", "compared", "at", "passed", "summary"}  # what ``verify.py`` writes


@dataclass(frozen=True)
class Identity:
    """What an engine holds for, but for its shapes.

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
        said = json.dumps([asdict(self.identity), self.profile.plain()], sort_keys=True)
        return f"{self.identity.role}-{self.identity.precision}-{hashlib.sha256(said.encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class SideCar:
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
        said = asdict(self) | {"format": FORMAT, "version": VERSION}
        said["key"] = {"identity": asdict(self.key.identity), "profile": self.key.profile.plain()}
        return json.dumps(said, indent=1) + "\n"


class Rejected(DiinnError):
    """An engine in the cache is not to be used; the message says why."""


def folder() -> Path:
    """``$DIINN_CACHE``, or ``engines`` in the user's cache folder for diinn."""
    chosen = os.environ.get("DIINN_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diinn" / "engines"
    except RuntimeError:  # neither HOME nor an entry in the list of users, as in some containers
        raise InputError("no home folder is known here: set DIINN_CACHE to a folder of your own") from None


class Cache:
    """The engines of one folder."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or folder()

    def engine(self, key: Key) -> Path:
        return self.path / f"{key.name}.engine"

    def side_car(self, key: Key) -> Path:
        return self.path / f"{key.name}.json"

    def entries(self) -> list[tuple[Path, SideCar | str]]:
        """Every engine file with its side-car, or what is wrong with that; newest first."""
        found: list[tuple[Path, SideCar | str]] = []
        for path in sorted(self.path.glob("*.engine"), key=lambda p: -_modified(p)):
            try:
                found.append((path, _read_side_car(path.with_suffix(".json"))))
            except Rejected as error:
                found.append((path, str(error)))
        return found

    def find(self, identity: Identity) -> list[SideCar]:
        """Side-cars of all engines that hold for ``identity``, whatever their shapes; newest first."""
        cars = [car for _, car in self.entries() if isinstance(car, SideCar)]
        return [car for car in cars if car.key.identity == identity]

    def refused(self, key: Key) -> bool:
        """Whether the engine of ``key`` is there and was found wrong."""
        try:
            return not _read_side_car(self.side_car(key)).verify.get("passed", True)
        except Rejected:
            return False

    def read(self, key: Key) -> tuple[bytes, SideCar]:
        """The engine of ``key`` and its side-car. Raises Rejected, which says what does not fit."""
        engine = self.engine(key)
        if not engine.exists():
            raise Rejected(f"there is no {engine.name} in {self.path}")
        _check_owner(self.path, "cache folder", self.path.stat())
        car = _read_side_car(self.side_car(key))
        if car.key != key:
            raise Rejected(f"{engine.name} was built for something else than its name says")
        data = read_own(engine)  # hashed and deserialised from the same bytes: nobody can change them in between
        found = hashlib.sha256(data).hexdigest()
        if found != car.sha256:
            raise Rejected(f"{engine.name} has sha256 {found[:12]}…, its side-car says {car.sha256[:12]}…")
        return data, car

    def write(self, key: Key, data: bytes, seconds: float) -> SideCar:
        """Keep an engine; whoever reads meanwhile finds the old one, a whole new one, or none."""
        car = SideCar(key, hashlib.sha256(data).hexdigest(), len(data), time.time(), seconds)
        with writing(self.path):
            self._prepare()
            self.side_car(key).unlink(missing_ok=True)  # from here on, what stands there is not to be used
            replace(self.engine(key), data)
            replace(self.side_car(key), car.text().encode())
        return car

    def write_verdict(self, car: SideCar, verify: Mapping[str, Any]) -> SideCar:
        """Record what ``verify.py`` found, unless another engine stands there by now or the cache cannot be written."""
        told = SideCar(car.key, car.sha256, car.size, car.built, car.seconds, verify)
        try:
            with self.lock(car.key):
                if _read_side_car(self.side_car(car.key)).sha256 == car.sha256:
                    with writing(self.path):
                        replace(self.side_car(car.key), told.text().encode())
        except (InputError, Rejected) as error:
            log.warning("the verdict is not kept: %s", error)
        return told

    @contextlib.contextmanager
    def lock(self, key: Key) -> Iterator[Path]:
        """Held by one process at a time; ends with the process, however that ends. Gives an empty folder to build in,
        which goes with the lock, or when the next one takes it. Where files cannot be locked (some NFS) nobody waits,
        and each builds in a folder of its own."""
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
        """Delete one engine, or all and the timings, with their side-cars; bytes freed. Touches nothing else."""
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
        _check_owner(self.path, "cache folder", self.path.stat())


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
    """What goes wrong with files in the cache at ``path`` becomes InputError."""
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


def _check_owner(path: Path, what: str, found: os.stat_result) -> None:
    """Rejected unless ``path``, of which ``found`` tells, is this user's and nobody else can write it."""
    if not hasattr(os, "getuid"):
        return
    if found.st_uid != os.getuid():
        raise Rejected(f"{what} {path} belongs to user {found.st_uid}, not to you")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Rejected(f"{what} {path} can be written by others: chmod go-w it")


def read_own(path: Path, most: int | None = None) -> bytes:
    """A file that is this user's alone to write, no link, of at most so many bytes; else Rejected."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            _check_owner(path, "file", found)
            if not stat.S_ISREG(found.st_mode):
                raise Rejected(f"{path.name} is no file")
            if most is not None and found.st_size > most:
                raise Rejected(f"{path.name} is larger than a side-car is")
            return file.read()
    except OSError as error:
        raise Rejected(f"{path.name} cannot be read: {error.strerror or error}") from None


def _read_side_car(path: Path) -> SideCar:
    if not path.exists():
        raise Rejected(f"the engine has no side-car {path.name}")
    data = read_own(path, LARGEST_SIDE_CAR)
    try:
        said = json.loads(data)
        if said["format"] != FORMAT or said["version"] != VERSION:
            raise Rejected(f"{path.name} is of version {said['version']!r}, this runtime reads {VERSION}")
        key = Key(Identity(**said["key"]["identity"]), profiles.from_plain(said["key"]["profile"]))
        verify = said["verify"]
        if not isinstance(verify, dict) or not isinstance(said["sha256"], str) or not _is_verdict(verify):
            raise TypeError("a field is of another type")
        size, built, seconds = (float(said[name]) for name in ("size", "built", "seconds"))
        time.localtime(built)  # raises for a time that is none
        if not math.isfinite(seconds):
            raise ValueError(f"seconds = {seconds}")
        return SideCar(key, said["sha256"], int(size), built, seconds, verify)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, InputError) as error:
        raise Rejected(f"{path.name} is damaged: {error}") from None


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


def replace(path: Path, data: bytes) -> None:
    """Write ``path`` whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
