"""TensorRT: an encoder and a decoder engine, with coordinates and gather in CUDA between them.

Frames go up, pixels come down; maps, rows and queries stay on the device. Engines come from the user's cache and are
built into it when they are not there (``engines``).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diinn.runtime.backends.base import Backend, BackendOptions, Chunk, Segment, write
from diinn.runtime.backends.on_device import FLOAT, INT, Buffers, DeviceMaps, Pinned, Replays, Tables
from diinn.runtime.bundle import Bundle
from diinn.runtime.cuda import Device
from diinn.runtime.engines import build, profiles, verify
from diinn.runtime.engines.cache import Cache, Key, Rejected, SideCar
from diinn.runtime.engines.engine import Engine, Opener
from diinn.runtime.engines.profiles import Profile, Shape
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.grid import Float32, RegularQueries, Size

log = logging.getLogger(__name__)
KERNELS = Path(__file__).parent.parent / "kernels" / "coordinates_gather.cu"


@dataclass
class Opened:
    """An engine of the cache, open, and its side-car."""

    engine: Engine
    car: SideCar

    @property
    def profile(self) -> Profile:
        return self.car.key.profile


class TensorRtBackend(Backend):
    """Two engines on one stream; what is allocated is allocated once."""

    name = "tensorrt"

    @classmethod
    def not_ready(cls, bundle: Bundle, options: BackendOptions) -> str:
        if options.provider is not None:
            return f"--provider {options.provider} is of ONNX Runtime"
        try:
            build.tensorrt()
            device = Device()
        except InputError as error:
            return str(error)
        precision = bundle.engine_precision(options.precision)
        try:
            wanted = [build.identity(bundle, role, precision, device) for role in build.ROLES]
        finally:
            device.close()
        if all(Cache().find(identity) for identity in wanted):
            return ""
        return f"no {precision} engines of {bundle.name} for this machine yet: python export/to_trt.py {bundle.path}"

    def load(self) -> None:
        if self.options.provider is not None:
            raise InputError(f"--provider {self.options.provider} is of ONNX Runtime: leave it out with TensorRT")
        library = build.tensorrt()
        self.precision = self.bundle.engine_precision(self.options.precision)
        self.tolerance = verify.TOLERANCES[self.precision]
        self._cache = Cache()
        self.device = Device()
        try:
            self._opener = Opener(library, self.device, self.bundle)
            self.encoder, self.decoder = self._open("encoder"), self._open("decoder")
            self._prepare()
        except BaseException:
            self.device.close()
            raise

    def _open(self, role: str, size: Size | None = None) -> Opened:
        """The newest engine in the cache that holds here, for frames of ``size`` if given; or a new one."""
        identity = build.identity(self.bundle, role, self.precision, self.device)
        known = [car.key for car in self._cache.find(identity) if size is None or _holds(car.key.profile, size)]
        sizes = profiles.DEFAULT_SIZES if size is None else (size,)
        new = profiles.encoder(sizes) if role == "encoder" else profiles.decoder(self.bundle)
        key = known[0] if known else Key(identity, new)
        if not self.options.may_build:
            return self._deserialise(*self._cache.read(key))
        found = build.build(self.bundle, key, self.device, build.BuildOptions(), self._cache)
        try:
            return self._deserialise(*found)
        except DiinnError as error:
            log.warning("%s: building it again", error)
        found = build.build(self.bundle, key, self.device, build.BuildOptions(force=True), self._cache)
        return self._deserialise(*found)

    def _deserialise(self, data: bytes, car: SideCar) -> Opened:
        return Opened(self._opener.open(data, car.key.identity.role), car)

    def _prepare(self) -> None:
        """Kernels, and all memory whose size does not depend on the frame."""
        samples, columns = self.bundle.layout.samples, len(self.bundle.layout.columns)
        most = self.decoder.profile.most["query"][0] // samples
        self.chunk = min(self.options.chunk or most, most)
        names = ("regular_queries", "gather_rows_4", "gather_rows_2")
        self._kernels = self.device.kernels(KERNELS, names)
        self._buffers = Buffers(self.device)
        self._tables = Tables(self.device, self._buffers)
        self._replays = {role: Replays(self.device, wanted=self.options.cuda_graphs) for role in build.ROLES}
        self._host_frame = Pinned(self.device)
        rows, allocate = self.chunk * samples, self.device.allocate
        self._index, self._query = allocate(rows * INT), allocate(rows * columns * FLOAT)
        self._rgb = allocate(self.chunk * 3 * FLOAT)
        self._host_index = self.device.pinned((rows,), np.int32)
        self._host_query = self.device.pinned((rows, columns), np.float32)
        self._host_rgb = self.device.pinned((self.chunk, 3), np.float32)
        shapes: dict[str, Shape] = {"query": (rows, columns)}
        addresses = {"query": self._query, "rgb": self._rgb}
        self._rows = []  # (address, channels, bytes a value) of the gathered rows of each map
        for spec in self.bundle.maps:
            size = self.decoder.engine.dtypes[spec.name].itemsize
            shapes[spec.name], addresses[spec.name] = (rows, spec.channels), allocate(rows * spec.channels * size)
            self._rows.append((addresses[spec.name], spec.channels, size))
        self.decoder.engine.bind(shapes, addresses)
        self._check_maps()

    def _check_maps(self) -> None:
        for spec in self.bundle.maps:
            one, other = (opened.engine.dtypes[spec.name] for opened in (self.encoder, self.decoder))
            if one != other:
                raise DiinnError(
                    f"{spec.name} leaves the encoder engine as {one} and enters the decoder's as {other}: "
                    f"build both again, python export/to_trt.py {self.bundle.path} --force"
                )

    def describe(self) -> str:
        return f"tensorrt {self._opener.version} ({self.device.name}, {self.precision})"

    def encode(self, frames: Float32) -> DeviceMaps:
        batch, _, height, width = frames.shape
        self._fit((width, height))
        engine = self.encoder.engine
        sizes = [engine.dtypes[m.name].itemsize * m.channels for m in self.bundle.maps]
        maps = DeviceMaps(self._buffers, [batch * height * width * size for size in sizes])
        block = self._buffers.take(frames.nbytes)
        try:
            staged = self._host_frame.array(frames.shape, np.float32)
            np.copyto(staged, frames)
            addresses = dict(zip([m.name for m in self.bundle.maps], maps.addresses, strict=True))
            if engine.bind({"frame": frames.shape}, {"frame": block[1], **addresses}):
                self._replays["encoder"].forget()

            def work() -> None:
                self.device.upload(block[1], staged)
                engine.enqueue()

            self._replays["encoder"].run((staged.ctypes.data, block[1], *maps.addresses), work)
            self.device.wait()  # the staged frame and its block are free again
        finally:
            self._buffers.give([block])
        return maps

    def most_frames(self, size: Size) -> int:
        self._fit(size)
        return self.encoder.profile.most["frame"][0]

    def takes(self, size: Size) -> bool:
        return _holds(self.encoder.profile, size)

    def _fit(self, size: Size) -> None:
        """Have an encoder engine for frames of ``size``: another one of the cache's, or a new one."""
        if self.takes(size):
            return
        wanted = f"{size[0]}x{size[1]}"
        log.warning("the encoder engine is not for %s frames: opening one that is", wanted)
        try:
            self.encoder = self._open("encoder", size)
        except Rejected:
            raise InputError(
                f"no encoder engine for {wanted} frames: python export/to_trt.py {self.bundle.path} "
                f"--frame-sizes {wanted}, or --backend onnxruntime"
            ) from None
        self._replays["encoder"].forget()
        self._check_maps()
        self.verify()

    def run_chunk(self, maps: DeviceMaps, chunk: Chunk) -> None:
        samples = self.bundle.layout.samples
        used = sum(segment.count for _, segment in chunk) * samples
        for at, segment in chunk:
            self._ask(at * samples, segment)

        def work() -> None:
            for source, (rows, channels, size) in zip(maps.addresses, self._rows, strict=True):
                values = used * channels
                pointers = [np.uint64(p) for p in (source, self._index, rows)]
                self._kernels[f"gather_rows_{size}"](values, np.int64(values), np.int32(channels), *pointers)
            self.decoder.engine.enqueue()
            self.device.download(self._host_rgb, self._rgb)

        self._replays["decoder"].run((used, *maps.addresses), work)
        self.device.wait()
        write(chunk, self._host_rgb)

    def _ask(self, at: int, segment: Segment) -> None:
        """Index and query of ``segment`` from sample ``at`` on, on the device."""
        layout, queries = self.bundle.layout, segment.queries
        columns, count = len(layout.columns), segment.count
        index, query = self._index + at * INT, self._query + at * columns * FLOAT
        if not (isinstance(queries, RegularQueries) and isinstance(segment.ids, slice)):
            here = slice(at, at + count * layout.samples)
            segment.ask(self._host_index[here], self._host_query[here])
            self.device.upload(index, self._host_index[here])
            self.device.upload(query, self._host_query[here])
            return
        sizes = (count, *queries.shape, queries.src_width, segment.offset, len(layout.shifts), columns, layout.weighted)
        pointers = [np.uint64(p) for p in (*self._tables[queries].addresses, index, query)]
        first = np.int64(segment.ids.start)
        self._kernels["regular_queries"](count, first, *(np.int32(n) for n in sizes), *pointers)

    @property
    def side_cars(self) -> list[SideCar]:
        """Of the encoder's and the decoder's engine."""
        return [self.encoder.car, self.decoder.car]

    def verify(self, *, again: bool = False) -> None:
        fresh = [opened for opened in (self.encoder, self.decoder) if again or not opened.car.verify]
        verdict = verify.compare(self) if fresh else None
        if verdict is not None and not verdict.rows:
            log.warning("the engines were not compared with the CPU: %s", verdict.compared)
            return
        if verdict is not None:
            for opened in fresh:
                opened.car = self._cache.write_verdict(opened.car, verdict.plain())
            log.info("engines compared with the CPU: %s", verdict.summary)
        for opened in (self.encoder, self.decoder):
            verify.require_passed(opened.car)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        self._replays.clear()
        del self.encoder, self.decoder, self._opener
        self._buffers.close()
        self.device.close()


def _holds(profile: Profile, size: Size) -> bool:
    return profile.holds("frame", (1, 3, size[1], size[0]))
