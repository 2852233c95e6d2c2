"""TensorRT: an encoder and a decoder engine, with coordinates and gather in CUDA between them.

Frames go up, pixels come down; maps, rows and queries stay on the device. Engines come from the user's cache and are
built into it when they are not there (``engines``).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diinn.runtime.backends.base import Backend, BackendOptions, Chunk, Segment, write
from diinn.runtime.bundle import Bundle
from diinn.runtime.cuda import Device
from diinn.runtime.engines import build, profiles, verify
from diinn.runtime.engines.cache import Cache, Key, Rejected, SideCar
from diinn.runtime.engines.profiles import Profile, Shape
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.grid import Float32, Queries, RegularQueries
from diinn.runtime.view import Size

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)
KERNELS = Path(__file__).parent.parent / "kernels" / "coordinates_gather.cu"
FLOAT, INT = 4, 4  # bytes
MOST_IDLE = 32  # buffers kept for another use


class Buffers:
    """Device memory that is used again: ``take`` gives (size, address) of at least so many bytes, ``give`` keeps it."""

    def __init__(self, device: Device) -> None:
        self._device, self.closed = device, False
        self._idle: list[tuple[int, int]] = []  # (size, address)

    def take(self, size: int) -> tuple[int, int]:
        fitting = [block for block in self._idle if size <= block[0] <= 2 * size]
        if fitting:
            self._idle.remove(min(fitting))
            return min(fitting)
        return size, self._device.allocate(size)

    def give(self, blocks: Sequence[tuple[int, int]]) -> None:
        self._idle.extend(blocks)
        while len(self._idle) > MOST_IDLE and not self.closed:  # else the device has freed it already
            self._device.free(self._idle.pop(0)[1])


class DeviceMaps:
    """The maps of one batch on the device, [B·H·W, C] each; their memory is used again when nobody holds them."""

    def __init__(self, buffers: Buffers, sizes: Sequence[int]) -> None:
        blocks = [buffers.take(size) for size in sizes]
        self.addresses = [address for _, address in blocks]
        self._return = weakref.finalize(self, buffers.give, blocks)


@dataclass
class Runner:
    """A deserialised engine ready to run, and the shapes it was built for."""

    car: SideCar
    engine: trt.ICudaEngine
    context: trt.IExecutionContext
    types: Mapping[Any, np.dtype[Any]]

    @property
    def profile(self) -> Profile:
        return self.car.key.profile

    def dtype(self, name: str) -> np.dtype[Any]:
        """Of a tensor; DiinnError for one that is neither fp32 nor fp16."""
        found = self.engine.get_tensor_dtype(name)
        if found not in self.types:
            raise DiinnError(f"the engine's {name} is {found}, neither fp32 nor fp16: build it again")
        return self.types[found]


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
        precision = _precision(bundle, options)
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
        self._library = build.tensorrt()
        self.precision = _precision(self.bundle, self.options)
        self.tolerance = verify.TOLERANCES[self.precision]
        self._cache = Cache()
        self.device = Device()
        try:
            self._load_engines()
        except BaseException:
            self.device.close()
            raise

    def _load_engines(self) -> None:
        self._open_runtime(self._library)
        self._shape: Shape = ()
        self.encoder, self.decoder = self._open("encoder"), self._open("decoder")
        most = self.decoder.profile.most["query"][0] // self.bundle.layout.samples
        self.chunk = min(self.options.chunk or most, most)
        names = ("regular_queries", "gather_rows_4", "gather_rows_2")
        self._kernels = self.device.kernels(KERNELS, names)
        self._buffers = Buffers(self.device)
        self._axes: weakref.WeakKeyDictionary[Queries, _Axes] = weakref.WeakKeyDictionary()
        self._prepare_decoder()

    def _open_runtime(self, trt: Any) -> None:
        self._logger = trt.Logger(trt.Logger.ERROR)
        try:
            with self.device.active():
                self._runtime: trt.Runtime = trt.Runtime(self._logger)
        except TypeError:  # "factory function returned nullptr"
            raise DiinnError(
                f"TensorRT {trt.__version__} does not start: check that the driver is new enough"
            ) from None
        # Not trt.nptype: 8.5's fails with the NumPy of today.
        self._types: dict[Any, np.dtype[Any]] = {
            trt.DataType.FLOAT: np.dtype(np.float32),
            trt.DataType.HALF: np.dtype(np.float16),
        }

    def _open(self, role: str, size: Size | None = None) -> Runner:
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

    def _deserialise(self, data: bytes, car: SideCar) -> Runner:
        with self.device.active():
            engine: trt.ICudaEngine = self._runtime.deserialize_cuda_engine(data)
            context: trt.IExecutionContext = engine.create_execution_context() if engine is not None else None
            ready = context is not None and context.set_optimization_profile_async(0, self.device.stream)
        self.device.wait()
        if not ready:
            raise DiinnError(
                f"TensorRT {self._library.__version__} does not run the {car.key.identity.role} engine it built"
            )
        return Runner(car, engine, context, self._types)

    def _prepare_decoder(self) -> None:
        samples, layout = self.bundle.layout.samples, self.bundle.layout
        rows = self.chunk * samples
        allocate = self.device.allocate
        self._index, self._query = allocate(rows * INT), allocate(rows * len(layout.columns) * FLOAT)
        self._rgb = allocate(self.chunk * 3 * FLOAT)
        self._host_index = self.device.pinned((rows,), np.int32)
        self._host_query = self.device.pinned((rows, len(layout.columns)), np.float32)
        self._host_rgb = self.device.pinned((self.chunk, 3), np.float32)
        self._rows, addresses = [], {"query": self._query, "rgb": self._rgb}
        shapes: dict[str, Shape] = {"query": (rows, len(layout.columns))}
        for spec in self.bundle.maps:
            size = self.decoder.dtype(spec.name).itemsize
            address = allocate(rows * spec.channels * size)
            self._rows.append((address, spec.channels, size))
            addresses[spec.name], shapes[spec.name] = address, (rows, spec.channels)
        self._set(self.decoder, shapes, addresses)

    def _set(self, runner: Runner, shapes: dict[str, Shape], addresses: dict[str, int]) -> None:
        for name, shape in shapes.items():
            if not runner.context.set_input_shape(name, shape):
                raise DiinnError(f"TensorRT refuses {name} of {profiles.text(shape)}")
        missing = runner.context.infer_shapes()
        if missing:
            raise DiinnError(f"TensorRT wants the shape of {', '.join(missing)}: build the engines again")
        for name, address in addresses.items():
            if not runner.context.set_tensor_address(name, address):
                raise DiinnError(f"TensorRT refuses the memory of {name}")

    def _enqueue(self, runner: Runner, what: str) -> None:
        with self.device.active():
            done = runner.context.execute_async_v3(self.device.stream)
        if not done:
            raise DiinnError(f"TensorRT failed to run the {what}: see --log-level debug")

    def describe(self) -> str:
        return f"tensorrt {self._library.__version__} ({self.device.name}, {self.precision})"

    def encode(self, frames: Float32) -> DeviceMaps:
        batch, _, height, width = frames.shape
        self._fit((width, height))
        sizes = [self.encoder.dtype(m.name).itemsize * m.channels for m in self.bundle.maps]
        maps = DeviceMaps(self._buffers, [batch * height * width * size for size in sizes])
        block = self._buffers.take(frames.nbytes)
        try:
            staged = self._staged(frames.shape)
            np.copyto(staged, frames)
            self.device.upload(block[1], staged)
            outputs = {m.name: address for m, address in zip(self.bundle.maps, maps.addresses, strict=True)}
            self._set(self.encoder, {"frame": frames.shape}, {"frame": block[1], **outputs})
            self._enqueue(self.encoder, "encoder")
            self.device.wait()  # the staged frame and its block are free again
        finally:
            self._buffers.give([block])
        return maps

    def most_frames(self, size: Size) -> int:
        self._fit(size)
        return self.encoder.profile.most["frame"][0]

    def takes(self, size: tuple[int, int]) -> bool:
        return _holds(self.encoder.profile, size)

    def _staged(self, shape: Shape) -> Float32:
        if self._shape != shape:
            self._shape, self._host_frame = shape, self.device.pinned(shape, np.float32)
        return self._host_frame

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
        self.verify()

    def run_chunk(self, maps: DeviceMaps, chunk: Chunk) -> None:
        samples = self.bundle.layout.samples
        used = sum(segment.count for _, segment in chunk) * samples
        for at, segment in chunk:
            self._ask(at * samples, segment)
        for source, (rows, channels, size) in zip(maps.addresses, self._rows, strict=True):
            values = used * channels
            pointers = [np.uint64(p) for p in (source, self._index, rows)]
            self._kernels[f"gather_rows_{size}"](values, np.int64(values), np.int32(channels), *pointers)
        self._enqueue(self.decoder, "decoder")
        self.device.download(self._host_rgb, self._rgb)
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
        if queries not in self._axes:
            self._axes[queries] = _Axes(self.device, self._buffers, queries)
        sizes = (count, *queries.shape, queries.src_width, segment.offset, len(layout.shifts), columns, layout.weighted)
        pointers = [np.uint64(p) for p in (*self._axes[queries].addresses, index, query)]
        first = np.int64(segment.ids.start)
        self._kernels["regular_queries"](count, first, *(np.int32(n) for n in sizes), *pointers)

    @property
    def side_cars(self) -> list[SideCar]:
        """Of the encoder's and the decoder's engine."""
        return [self.encoder.car, self.decoder.car]

    def verify(self, *, again: bool = False) -> None:
        fresh = [runner for runner in (self.encoder, self.decoder) if again or not runner.car.verify]
        verdict = verify.compare(self) if fresh else None
        if verdict is not None and not verdict.rows:
            log.warning("the engines were not compared with the CPU: %s", verdict.compared)
            return
        if verdict is not None:
            for runner in fresh:
                runner.car = self._cache.write_verdict(runner.car, verdict.plain())
            log.info("engines compared with the CPU: %s", verdict.summary)
        for runner in (self.encoder, self.decoder):
            verify.require_passed(runner.car)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        del self.encoder, self.decoder, self._runtime
        self._buffers.closed = True
        self._axes.clear()
        self.device.close()


def _holds(profile: Profile, size: Size) -> bool:
    return profile.holds("frame", (1, 3, size[1], size[0]))


def _precision(bundle: Bundle, options: BackendOptions) -> str:
    return options.precision or ("fp16" if "fp16" in bundle.graphs else "fp32")


class _Axes:
    """A regular grid's axis tables on the device."""

    def __init__(self, device: Device, buffers: Buffers, queries: RegularQueries) -> None:
        tables = [
            np.concatenate([axis.index for axis in queries.rows]),
            np.concatenate([axis.local for axis in queries.rows]),
            np.concatenate([axis.index for axis in queries.cols]),
            np.concatenate([axis.local for axis in queries.cols]),
            queries.constants,
        ]
        blocks = [buffers.take(max(table.nbytes, 1)) for table in tables]
        for (_, address), table in zip(blocks, tables, strict=True):
            device.upload(address, np.ascontiguousarray(table))
        device.wait()  # the tables are gone when this returns
        self.addresses = [address for _, address in blocks]
        self._return = weakref.finalize(self, buffers.give, blocks)
