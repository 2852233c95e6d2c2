"""Engines on demand: from the cache if one fits, else built into it, once, however many processes need it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diinn.runtime.bundles.bundle import Bundle
from diinn.runtime.engines import failure, profiles, versions
from diinn.runtime.engines.cache import Cache, EngineMetadata, Identity, Key, writing
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.util import cuda_driver, memory
from diinn.runtime.util.memory import MIB
from diinn.runtime.util.private_files import FileRejected, replace

if TYPE_CHECKING:
    from diinn.runtime.gpu.device import Device

log = logging.getLogger(__name__)
ROLES = ("encoder", "decoder")
INSTALL = "it comes with JetPack (python3 -m venv --system-site-packages), elsewhere pip install tensorrt"
SPARE = 16 * MIB  # of workspace, beside what frames and queries take
LAYOUTS = 1.5  # of what is alive at once in an encoder: an input may be held in two layouts


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    workspace: bytes, None for a quarter of what the device has free
    timing: file of measured timings, None for the cache's; tactics: as in ``Job``
    force: build although a fitting engine is cached; interval: seconds between two log lines while it builds
    """

    workspace: int | None = None
    timing: Path | None = None
    tactics: tuple[str, ...] | None = None
    force: bool = False
    interval: float = 5.0


@dataclass(frozen=True)
class Job:
    """What to build.

    graph: a typed ONNX file; precision: fp32, fp16 or int8; route: as in ``versions.Rules``
    workspace: bytes TensorRT may use while it tries kernels; timing: file of its measured timings
    tactics: libraries it may take kernels from, names in ``TacticSource``; None for its default
    """

    graph: str
    precision: str
    route: str
    profile: Profile
    workspace: int
    timing: str
    tactics: tuple[str, ...] | None
    out: str

    def text(self) -> str:
        return json.dumps(asdict(self) | {"profile": self.profile.plain()})

    @classmethod
    def parse(cls, text: str) -> Job:
        fields = json.loads(text)
        tactics = None if fields["tactics"] is None else tuple(fields["tactics"])
        return cls(**fields | {"profile": profiles.from_plain(fields["profile"]), "tactics": tactics})


class BuildError(DiinnError):
    """TensorRT did not build an engine; ``memory``: whether for lack of it."""

    def __init__(self, message: str, *, memory: bool) -> None:
        super().__init__(message)
        self.memory = memory


class TooLarge(InputError):
    """The largest shapes of an engine cannot fit into the memory that is free."""


def tensorrt() -> Any:
    """The installed TensorRT; InputError where there is none or it is too old."""
    try:
        import tensorrt as trt
    except (ImportError, OSError) as error:  # OSError: a library it is linked to does not load
        raise InputError(f"TensorRT is not installed ({' '.join(str(error).split())}): {INSTALL}") from None
    versions.routes(trt.__version__)
    return trt


def no_builder() -> str:
    """Why TensorRT builds nothing here, for messages; empty where it makes a builder.

    Tried in a process of its own: some versions crash where there is no driver.
    """
    command = [sys.executable, "-m", "diinn.runtime.engines.build_worker", "--try", str(os.getpid())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "TensorRT does not answer within a minute: check the driver with nvidia-smi"
    if done.returncode < 0:
        return f"TensorRT crashes ({failure.signal_name(-done.returncode)}): check the driver with nvidia-smi"
    output = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return failure.line(output[-1] if output else f"exit code {done.returncode}") if done.returncode else ""


def identities(bundle: Bundle, role: str, precision: str, device: Device) -> list[Identity]:
    """The identity of an engine of ``bundle`` on this machine, for every way to build it here; best first."""
    version, graph = tensorrt().__version__, bundle.files[bundle.graph(role, precision).name]
    found = (device.name, device.capability, device.multiprocessors)
    return [Identity(role, graph, version, *found, precision, way.route) for way in versions.routes(version)]


def build(
    bundle: Bundle, key: Key, device: Device, options: BuildOptions, cache: Cache
) -> tuple[bytes, EngineMetadata]:
    """The engine of ``key``, from the cache or built into it.

    Where TensorRT fails to build it, or it was built and found wrong, the next way to build it is tried.

    Raises InputError for a profile that cannot fit, DiinnError for a build that failed: with TensorRT's own message and
    what to do.
    """
    keys = other_ways(key)
    if options.force:
        return _built(bundle, keys, device, options, cache)
    found = _kept(cache, keys, logging.DEBUG)  # without a lock: a cache that can only be read is as good
    return found or _built(bundle, keys, device, options, cache)


def other_ways(key: Key) -> list[Key]:
    """A key, and those of the same engine built in ways that are tried after its own."""
    ways = [way.route for way in versions.routes(key.identity.tensorrt)]
    later = ways[ways.index(key.identity.route) :] if key.identity.route in ways else [key.identity.route]
    return [replaced(key, identity=replaced(key.identity, route=route)) for route in later]


def _built(
    bundle: Bundle, keys: Sequence[Key], device: Device, options: BuildOptions, cache: Cache
) -> tuple[bytes, EngineMetadata]:
    """Built in the first of the ways that works.

    A way whose engine was found wrong is passed over, if another is left.
    """
    fresh = [key for key in keys if options.force or not cache.refused(key)] or keys[:1]
    for key in fresh:
        with cache.lock(key) as folder:
            found = None if options.force else _kept(cache, fresh, logging.INFO)
            if found:  # another process built it meanwhile
                return found
            workspace = _workspace(bundle, key, device, options)
            began = time.monotonic()
            try:
                data = _in_process(bundle, key, options, workspace, cache, folder)
                with writing(cache.path):
                    return data, cache.write(key, data, time.monotonic() - began)
            except BuildError as error:
                if error.memory or key is fresh[-1]:
                    raise
                log.warning("%s. Trying once more with precision flags, as TensorRT 8 takes them", error)
    raise AssertionError("the last way either returns or raises")


def _kept(cache: Cache, keys: Sequence[Key], level: int) -> tuple[bytes, EngineMetadata] | None:
    """The first that is in the cache and was not found wrong; if all were, one of those."""
    found = []
    for key in keys:
        try:
            found.append(cache.read(key))
        except FileRejected as error:
            if key is keys[0] or cache.engine(key).exists():
                log.log(level, "%s: %s: building it", key.identity.role, error)
    right = [(data, metadata) for data, metadata in found if metadata.verify.get("passed", True)]
    if not right and len(found) < len(keys):
        return None
    data, metadata = (right or found)[0]
    with contextlib.suppress(OSError):
        cache.engine(metadata.key).touch()  # the newest is what the runtime opens
    return data, metadata


def least_workspace(bundle: Bundle, role: str, precision: str, profile: Profile) -> int:
    """Bytes below which a build may find no kernels.

    A little above what NVIDIA's builders need for the models that ship
    (``tests/runtime/engines/test_nvidia_builder.py``).
    """
    if role == "encoder":
        batch, _, height, width = profile.most["frame"]
        alive = batch * height * width * bundle.workspace // (2 if precision == "fp16" else 1)
        return int(alive * LAYOUTS) + SPARE
    rows, columns = profile.most["query"]
    return rows * (columns + 6 * max(spec.channels for spec in bundle.maps)) * 4 + SPARE


def _workspace(bundle: Bundle, key: Key, device: Device, options: BuildOptions) -> int:
    """Bytes TensorRT may use, after a check that the largest shapes can fit at all."""
    role = key.identity.role
    free, total = device.memory()
    shared = cuda_driver.integrated()
    if shared:  # page cache counts as used there
        free = max(free, memory.available() or 0)
    needed = least_workspace(bundle, role, key.identity.precision, key.profile)
    chosen = max(free // 4, needed) if options.workspace is None else options.workspace
    if chosen > free:
        least = needed
        if options.workspace is not None:
            least = chosen
            problem = f"--workspace {chosen // MIB}: the device has only {free // MIB} MiB free: lower it"
        else:
            what = "the decoder needs"
            if role == "encoder":
                batch, _, height, width = key.profile.most["frame"]
                what = f"{batch} frames of {width}x{height} need"
                least = int((needed - SPARE) / LAYOUTS) + SPARE  # an input may do with one layout
            problem = (
                f"{what} some {needed / MIB:.0f} MiB, the device has {free / MIB:.0f} of {total / MIB:.0f} MiB free: "
                + (failure.LOWER.format(bundle=bundle.path) if role == "encoder" else "close other programs")
            )
        if not shared and least > free:
            raise TooLarge(problem)
        log.warning("%s; trying all the same", problem)
    elif chosen < needed:
        log.warning("--workspace %d: the %s needs some %d MiB: the build may fail", chosen // MIB, role, needed // MIB)
    return chosen


def _in_process(bundle: Bundle, key: Key, options: BuildOptions, workspace: int, cache: Cache, folder: Path) -> bytes:
    role, precision = key.identity.role, key.identity.precision
    timing = options.timing or cache.timing()
    out = folder.resolve() / "engine"
    graph = folder.resolve() / bundle.graph(role, precision).name
    content = bundle.graph_content(role, precision)
    job = Job(
        str(graph),
        precision,
        key.identity.route,
        key.profile,
        workspace,
        str(timing.resolve()),
        options.tactics,
        str(out),
    )
    with writing(cache.path):
        graph.write_bytes(content)  # what was checked is what is built
        (folder / "job.json").write_text(job.text(), encoding="utf-8")
    log.info("%s: building in %s with a workspace of %d MiB; this takes minutes", role, precision, workspace // MIB)
    command = [sys.executable, "-m", "diinn.runtime.engines.build_worker", str(folder / "job.json"), str(os.getpid())]
    code, output = _wait(command, role, options.interval)
    report = _report(out)
    for said_by_tensorrt in [*report["errors"], *report["warnings"]]:
        ours = said_by_tensorrt.startswith("timing cache")
        log.log(logging.WARNING if ours else logging.DEBUG, "TensorRT: %s", said_by_tensorrt)
    if code or not out.exists():
        text, short = failure.explained(code, report, output, workspace, str(bundle.path))
        raise BuildError(f"{role}: {text}", memory=short)
    kept = out.with_suffix(".timing")
    if kept.exists():
        _keep_timing(kept, timing)
    with writing(cache.path):
        return out.read_bytes()


def _wait(command: Sequence[str], role: str, interval: float) -> tuple[int, str]:
    """Exit code and last output of a process; it ends with ours."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words:
        began = time.monotonic()
        try:
            process = subprocess.Popen(command, stdout=words, stderr=words, stdin=subprocess.DEVNULL)
        except OSError as error:  # ENOMEM, EAGAIN: not the cache's fault
            short = error.errno in (errno.ENOMEM, errno.EAGAIN)
            raise BuildError(
                f"{role}: cannot start the build: {error.strerror or error}: close other programs", memory=short
            ) from None
        try:
            while True:
                try:
                    code = process.wait(interval)
                    break
                except subprocess.TimeoutExpired:
                    log.info("%s: building for %.0f s", role, time.monotonic() - began)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        words.seek(0)
        return code, words.read()[-2000:]


def _report(out: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(out.with_name(out.name + ".log.json").read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return {"failed": "", "errors": [], "warnings": []}


def _keep_timing(found: Path, kept: Path) -> None:
    """Keep the timings of a build; the last build wins, since they matter for speed alone."""
    try:
        replace(kept, found.read_bytes())
    except OSError as error:
        log.warning("the timing cache %s could not be kept: %s", kept, error.strerror or error)
