"""The engines of one bundle in use: from the cache or built, opened, compared with the CPU; and one as encoder."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from diinn.runtime.bundles.bundle import Bundle
from diinn.runtime.engines import build, profiles, verify
from diinn.runtime.engines.cache import Cache, EngineMetadata, Identity, Key
from diinn.runtime.engines.engine import Engine, EngineLoader, NotRunnable
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.engines.verify import Verdict
from diinn.runtime.errors import DiinnError, InputError, OutOfMemory
from diinn.runtime.geometry.grid import Size
from diinn.runtime.gpu.device import Device
from diinn.runtime.util.once import Once
from diinn.runtime.util.private_files import FileRejected

log = logging.getLogger(__name__)
Compare = Callable[[str, Profile], Verdict]  # (precision, profile of the encoder) of a backend in use
RETRY = 30.0  # seconds until a size for which memory was short is tried again
SMALL_RUNS = 4  # of the engine for small chunks that take the place of one for a full chunk


@dataclass
class LoadedEngine:
    """An engine of the cache, open, and its metadata."""

    engine: Engine
    metadata: EngineMetadata

    @property
    def profile(self) -> Profile:
        return self.metadata.key.profile


class Engines:
    """Opens engines of one bundle in one precision on one device."""

    def __init__(self, bundle: Bundle, device: Device, precision: str | None, *, may_build: bool) -> None:
        """Raises InputError where TensorRT is missing."""
        self.bundle, self.device, self._may_build = bundle, device, may_build
        self.precision = bundle.engine_precision(precision)
        self._cache, self._loader = Cache(), EngineLoader(build.tensorrt(), device, bundle)
        self.version = self._loader.version

    def open_decoder(self, *, small: bool = False, may_build: bool = True) -> LoadedEngine:
        """As ``open_encoder``, the decoder for full chunks or for small ones."""
        ways, known = self._known("decoder")
        wanted = profiles.SMALL_DECODER if small else "decoder"
        fitting = [key for key in known if profiles.name(self.bundle, "decoder", key.profile) == wanted]
        key = fitting[0] if fitting else Key(ways[0], profiles.decoder(self.bundle, small=small))
        return self._built(key) if self._may_build and may_build else self._deserialise(*self._cache.read(key))

    def _known(self, role: str) -> tuple[list[Identity], list[Key]]:
        """Identities of a role's engines, best first, and the keys of those that were not found wrong, newest first."""
        ways = build.identities(self.bundle, role, self.precision, self.device)
        found = [metadata for way in ways for metadata in self._cache.find(way)]
        return ways, [metadata.key for metadata in found if metadata.verify.get("passed", True)]

    def open_encoder(self, size: Size | None = None, present: Profile | None = None) -> LoadedEngine:
        """The newest engine in the cache that is valid here and was not found wrong, or a new one.

        size: (width, height) of frames it must take; present: what a new one must take, too

        Raises FileRejected where a new one is needed and building is not allowed.
        """
        ways, right = self._known("encoder")
        known = [key for key in right if size is None or holds(key.profile, size)]
        sizes = profiles.DEFAULT_SIZES if size is None else (size,)
        cameras = 1
        if size is not None and present is not None:  # one engine for all sizes seen, not one for each
            cameras, _, height, width = present.most["frame"]
            sizes = (size, (width, height))
        key = known[0] if known else Key(ways[0], profiles.encoder(self.bundle, sizes, cameras))
        if not self._may_build:
            return self._deserialise(*self._cache.read(key))
        try:
            return self._built(key)
        except (build.TooLarge, build.BuildError, OutOfMemory) as error:
            if size is None or present is None or (isinstance(error, build.BuildError) and not error.memory):
                raise
            alone = Key(ways[0], profiles.encoder(self.bundle, (size,)))
            if alone.profile == key.profile:
                raise
            log.warning("%s; trying an encoder engine for frames of %dx%d alone", error, *size)
        return self._built(alone)

    def _built(self, key: Key) -> LoadedEngine:
        """From the cache or built into it, and open; built again where TensorRT does not take it."""
        found = build.build(self.bundle, key, self.device, build.BuildOptions(), self._cache)
        try:
            return self._deserialise(*found)
        except NotRunnable as error:
            log.warning("%s: building it again", error)
        found = build.build(self.bundle, found[1].key, self.device, build.BuildOptions(force=True), self._cache)
        return self._deserialise(*found)

    def _deserialise(self, data: bytes, metadata: EngineMetadata) -> LoadedEngine:
        return LoadedEngine(self._loader.open(data, metadata.key.identity.role), metadata)

    def verify(
        self, opened: Sequence[LoadedEngine], compare: Compare, changed: Callable[[], None], *, again: bool
    ) -> None:
        """Compare the backend that uses ``opened`` with the CPU where one of them has no verdict yet, or ``again``.

        Where they differ and this TensorRT has another way to build them, they are built that way and compared once
        more; ``changed`` is called when ``opened`` has been changed. DiinnError where one of them stays bad.
        """
        if not self._compare(opened, compare, again):
            return
        bad = [one for one in opened if not one.metadata.verify["passed"]]
        if bad and self._may_build:
            try:
                others = [one for one in bad if self._another_way(one)]
            finally:  # some may be replaced where another could not be
                changed()
            if others:
                self._compare(opened, compare, again)
        for one in opened:
            verify.require_passed(one.metadata)

    def _compare(self, opened: Sequence[LoadedEngine], compare: Compare, again: bool) -> bool:
        """Whether all of ``opened`` have a verdict now."""
        fresh = [one for one in opened if again or not one.metadata.verify]
        verdict = compare(self.precision, opened[0].profile) if fresh else None
        if verdict is not None and not verdict.rows:
            log.warning("the engines were not compared with the CPU: %s", verdict.compared)
            return False
        if verdict is not None:
            for one in fresh:
                one.metadata = self._cache.write_verdict(one.metadata, verdict.plain())
            log.info("engines compared with the CPU: %s", verdict.summary)
        return True

    def _another_way(self, one: LoadedEngine) -> bool:
        """Replace an engine by the same, built in the next way; False where there is none."""
        later = build.other_ways(one.metadata.key)[1:]
        if not later:
            return False
        summary, role = one.metadata.verify["summary"], later[0].identity.role
        log.warning("%s engine: %s: building it with precision flags, as TensorRT 8 takes them", role, summary)
        other = self._deserialise(*build.build(self.bundle, later[0], self.device, build.BuildOptions(), self._cache))
        if one.engine.addresses:
            other.engine.bind(one.engine.shapes, one.engine.addresses)
        one.engine, one.metadata = other.engine, other.metadata
        return True


class EngineEncoder:
    """An encoder engine for frames of any size: another is opened where one is not for them."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self.opened = engines.open_encoder()
        self._short: dict[Size, tuple[float, str]] = {}  # sizes without memory: when to try again, and the message
        self._logged = Once()

    @property
    def map_bytes(self) -> int:
        """Bytes of a value of the maps."""
        return max(self.opened.engine.dtypes[spec.name].itemsize for spec in self._engines.bundle.maps)

    @property
    def max_batch(self) -> int:
        return self.opened.profile.most["frame"][0]

    def accepts(self, size: Size) -> bool:
        return holds(self.opened.profile, size)

    def prepare_for(self, size: Size, check: Callable[[], None]) -> None:
        """Have an engine for frames of ``size``: another one of the cache's, or a new one, if it passes ``check``.

        Raises OutOfMemory where memory is short, and for ``RETRY`` seconds after that without another attempt: this is
        called for each frame.
        """
        if self.accepts(size):
            return
        until, why = self._short.get(size, (0.0, ""))
        if time.monotonic() < until:
            raise OutOfMemory(why)
        wanted, bundle = f"{size[0]}x{size[1]}", self._engines.bundle
        level = logging.WARNING if self._logged.first(size) else logging.DEBUG
        log.log(level, "the encoder engine is not for %s frames: opening one that is", wanted)
        before = self.opened
        try:
            self.opened = self._engines.open_encoder(size, before.profile)
        except FileRejected:
            raise InputError(
                f"no encoder engine for {wanted} frames: diinn-build {bundle.path} "
                f"--frame-sizes {wanted}, or --backend onnxruntime"
            ) from None
        except (build.TooLarge, build.BuildError, OutOfMemory) as error:
            if isinstance(error, build.BuildError) and not error.memory:
                raise
            raise self._remembered(size, error) from None
        try:
            check()
        except BaseException as error:
            with contextlib.suppress(DiinnError):
                self._engines.device.wait()  # the new engine may be at work
            self.opened = before
            if isinstance(error, OutOfMemory):
                raise self._remembered(size, error) from None
            raise
        self._short.pop(size, None)
        self._logged.forget(size)

    def _remembered(self, size: Size, error: Exception) -> OutOfMemory:
        self._short[size] = time.monotonic() + RETRY, str(error)
        return OutOfMemory(str(error))

    def encode(self, frames: int, batch: int, size: Size, maps: Sequence[int]) -> bool:
        """Put float32 [batch, planes, H, W] to the maps on the stream; whether the shape is another than before."""
        bundle = self._engines.bundle
        names = [spec.name for spec in bundle.maps]
        addresses = {"frame": frames, **dict(zip(names, maps, strict=True))}
        changed = self.opened.engine.bind({"frame": (batch, bundle.planes, size[1], size[0])}, addresses)
        self.opened.engine.enqueue()
        return changed


class EngineDecoder:
    """The decoder engines: one takes full chunks of queries, another small ones, where it is in the cache.

    It is built only where the first one is, too: a robot's later starts wait for no build that has failed before.

    full: the one; small: the other, or None
    """

    def __init__(self, engines: Engines) -> None:
        self._bundle, began = engines.bundle, time.time()
        self.full = engines.open_decoder()
        self.small: LoadedEngine | None = None
        try:
            small = engines.open_decoder(small=True, may_build=self.full.metadata.built >= began)
            if small.metadata.verify:
                verify.require_passed(small.metadata)
            if small.engine.dtypes != self.full.engine.dtypes:
                raise DiinnError("its tensors are of other types than those of the decoder for full chunks")
            self.small = small
        except DiinnError as error:
            self.drop_small(error, logging.INFO if isinstance(error, FileRejected) else logging.WARNING)
        self._memory: dict[str, tuple[int, int]] = {}
        self._only: LoadedEngine | None = None

    @property
    def opened(self) -> list[LoadedEngine]:
        """All of them."""
        return [self.full, *([self.small] if self.small else [])]

    @property
    def chunk(self) -> int:
        """Queries of a full chunk."""
        return self._queries(self.full)

    @property
    def room(self) -> int:
        """Queries that there must be memory for: runs for small chunks may go beyond the end of a full one."""
        return max(-(-self.chunk // queries) * queries for queries in map(self._queries, self.opened))

    def _queries(self, opened: LoadedEngine) -> int:
        return profiles.queries(self._bundle, opened.profile)

    def drop_small(self, why: DiinnError, level: int = logging.WARNING) -> None:
        """Decode small chunks as full ones from here on."""
        log.log(level, "small chunks are decoded as full ones: %s", why)
        self.small = None

    @contextlib.contextmanager
    def only(self, opened: LoadedEngine | None) -> Iterator[None]:
        """Whatever chunks hold, one engine decodes them within, to compare it; with None the fitting one."""
        self._only = opened
        try:
            yield
        finally:
            self._only = None

    def _fitting(self, count: int) -> LoadedEngine:
        """Which engine decodes so many queries."""
        if self._only or not self.small:
            return self._only or self.full
        runs = -(-count // self._queries(self.small))
        return self.small if runs <= SMALL_RUNS and runs * self._queries(self.small) < self.chunk else self.full

    def use(self, memory: Mapping[str, tuple[int, int]]) -> None:
        """Take tensors from and to this memory, for ``room`` queries: (address, bytes of a query) by name."""
        self._memory = dict(memory)

    def decode(self, count: int) -> None:
        """Put the first ``count`` queries of a chunk on the stream."""
        opened = self._fitting(count)
        for first in range(0, count, self._queries(opened)):
            addresses = {name: address + first * size for name, (address, size) in self._memory.items()}
            opened.engine.bind(opened.profile.most, addresses)
            opened.engine.enqueue()


def holds(profile: Profile, size: Size) -> bool:
    """Whether an encoder's profile takes frames of ``size`` (width, height)."""
    return profile.holds("frame", (1, profile.most["frame"][1], size[1], size[0]))
