"""CUDA: the whole DIINN decoder in one kernel; the encoder by a TensorRT engine or by ONNX Runtime's CUDA provider."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from diinn.runtime.backends.base import BackendOptions
from diinn.runtime.backends.gpu_base import DeviceBackend, meant_for_another
from diinn.runtime.bundles.bundle import Bundle
from diinn.runtime.engines import build, verify
from diinn.runtime.engines.cache import Cache
from diinn.runtime.engines.loader import EngineEncoder, Engines
from diinn.runtime.errors import DiinnError, InputError, OutOfMemory
from diinn.runtime.geometry.grid import Size
from diinn.runtime.gpu.decoder import FusedDecoder, planned
from diinn.runtime.gpu.device import Device
from diinn.runtime.gpu.memory import DeviceMaps

log = logging.getLogger(__name__)
LAUNCH = 2**20  # queries of one launch: 3 or 12 MiB of pixels
HALF = 2  # bytes


class OrtEncoder:
    """The encoder graph on ONNX Runtime's CUDA provider, bound to our memory; or on the CPU, with a copy each way."""

    map_bytes = HALF

    def __init__(self, bundle: Bundle, device: Device, provider: str) -> None:
        """Raises InputError where ``provider``, "CUDA" or "CPU", is missing."""
        from diinn.runtime.util.onnx_runtime import open_session, ort

        self._bundle, self._device, self._provider = bundle, device, provider
        why = _no_provider(provider)
        if why:
            raise InputError(why)
        path, content = bundle.graph("encoder", "fp16"), bundle.graph_content("encoder", "fp16")
        remedy = "give --backend onnxruntime --provider cpu"
        self._session: Any = open_session(content, path, provider, remedy=remedy)
        self.description = f"onnxruntime {ort.__version__} {provider}"

    def encode(self, frames: int, batch: int, size: Size, maps: Sequence[int]) -> bool:
        """float32 [batch, planes, H, W] to the maps; done when this returns."""
        shape = (batch, self._bundle.planes, size[1], size[0])
        try:
            if self._provider == "CPU":
                self._on_cpu(frames, shape, maps)
            else:
                self._on_device(frames, shape, maps)
        except DiinnError:
            raise
        except Exception as error:
            from diinn.runtime.util.onnx_runtime import failed

            raise failed(error) from error
        return False

    def _on_device(self, frames: int, shape: tuple[int, ...], maps: Sequence[int]) -> None:
        binding = self._session.io_binding()
        binding.bind_input("frame", "cuda", 0, np.float32, shape, frames)
        for spec, address in zip(self._bundle.maps, maps, strict=True):
            out = (shape[0], *shape[2:], spec.channels)
            binding.bind_output(spec.name, "cuda", 0, np.float16, out, address)
        self._device.wait()  # ONNX Runtime has a stream of its own
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def _on_cpu(self, frames: int, shape: tuple[int, ...], maps: Sequence[int]) -> None:
        host = np.empty(shape, np.float32)
        self._device.fetch(host, frames).wait()
        made = self._session.run([spec.name for spec in self._bundle.maps], {"frame": host})
        for values, address in zip(made, maps, strict=True):
            self._device.upload(address, np.ascontiguousarray(values))
        self._device.wait()  # the arrays are freed when this returns


class CudaBackend(DeviceBackend):
    """Maps in fp16, decoded by one kernel."""

    name = "cuda"

    @classmethod
    def not_ready(cls, bundle: Bundle, options: BackendOptions) -> str:
        if another := meant_for_another(options):
            return another
        try:
            device = Device()
        except InputError as error:
            return str(error)
        try:
            planned(device, _layers(bundle, options))
        except InputError as error:
            log.warning("not the fused decoder: %s", error)
            return str(error)
        else:
            asked = options.decoder == "fused"  # then an engine may be built
            why = "" if asked or _engine_there(bundle, options, device) else _no_provider("CUDA")
            return f"{why}; and no encoder engine: diinn-build {bundle.path}" if why else ""
        finally:
            device.close()

    def require(self, bundle: Bundle, options: BackendOptions) -> None:
        planned(self.device, _layers(bundle, options))

    def load(self) -> None:
        layers = _layers(self.bundle, self.options)
        self.tolerance = verify.TOLERANCES["fp16"]
        self.chunk = min(self.options.chunk or LAUNCH, LAUNCH)
        self._decoder = FusedDecoder(self.device, layers)
        self._open_encoder()

    def _open_encoder(self) -> None:
        """A TensorRT engine where a good one is or may be built, else ONNX Runtime on the GPU, else on the CPU.

        The CPU only where this backend was named: "auto" goes on to the next backend instead.
        """
        self._engines: Engines | None = None
        why = []
        if self.options.may_build or _engine_there(self.bundle, self.options, self.device):
            try:
                self._engines = Engines(
                    self.bundle, self.device, self.options.precision, may_build=self.options.may_build
                )
                encoder = EngineEncoder(self._engines)
                if encoder.opened.metadata.verify:
                    verify.require_passed(encoder.opened.metadata)
                self._encoder: EngineEncoder | OrtEncoder = encoder
                return
            except DiinnError as error:  # missing, damaged or found wrong
                self._engines = None
                why.append(str(error))
        self._encode_by_onnx_runtime(why)

    def _encode_by_onnx_runtime(self, why: list[str]) -> None:
        """In place of an engine; why: what is wrong with that."""
        self.device.wait()  # the engine may be at work
        self._encoding.refuse()  # what ONNX Runtime launches is not on our stream
        # One that may build nothing is one of several: others are faster than an encoder on the CPU.
        for provider in ("CUDA", "CPU") if self.options.may_build else ("CUDA",):
            try:
                self._encoder = OrtEncoder(self.bundle, self.device, provider)
                break
            except (DiinnError, ImportError) as error:
                why.append(str(error))
        else:
            raise InputError(f"no encoder: {'; '.join(why)}")
        if provider == "CPU":
            log.warning("the encoder runs on the CPU, slowly: %s", "; ".join(why))
        elif why:
            log.warning("the encoder runs by ONNX Runtime: %s", "; ".join(why))

    def describe(self) -> str:
        encoder = f"TensorRT {self._engines.version}" if self._engines else getattr(self._encoder, "description", "")
        return f"cuda ({self.device.name}, {self._decoder.plan.kernel}, encoder by {encoder})"

    def map_bytes(self) -> int:
        if self._encoder.map_bytes != HALF:
            raise DiinnError(
                f"the encoder engine's maps are not fp16: build it again, diinn-build {self.bundle.path} --force"
            )
        return HALF

    def prepare_for(self, size: Size) -> None:
        if isinstance(self._encoder, EngineEncoder) and not self._encoder.accepts(size):
            self.device.wait()  # the engine may be at work, and is replaced
            self._encoding.forget()
            try:
                self._encoder.prepare_for(size, self.verify)
            finally:
                self._encoding.forget()  # graphs hold for one engine; a refused one leaves none

    def encode_planar(self, frames: int, batch: int, size: Size, maps: Sequence[int]) -> None:
        if self._encoder.encode(frames, batch, size, maps):
            self._encoding.forget()

    def max_batch(self, size: Size) -> int | None:
        self.prepare_for(size)
        return self._encoder.max_batch if isinstance(self._encoder, EngineEncoder) else None

    def holds(self, size: Size) -> bool:
        return isinstance(self._encoder, EngineEncoder) and self._encoder.accepts(size)

    def accepts(self, size: Size) -> bool:
        return not isinstance(self._encoder, EngineEncoder) or self._encoder.accepts(size)

    def decode_segments(self, maps: DeviceMaps, count: int, segments: int, at: int) -> None:
        self._decoder.decode(maps.table, count, segments, at)

    def verify(self, *, again: bool = False) -> None:
        if self._engines is not None and isinstance(self._encoder, EngineEncoder):
            try:
                self._engines.verify([self._encoder.opened], self.compared, self._encoding.forget, again=again)
            except OutOfMemory:
                raise
            except DiinnError as error:  # found wrong: as if it had been known when it was opened
                if again:
                    raise
                self._encoding.forget()
                self._encode_by_onnx_runtime([str(error)])
                self._engines = None

    def release(self) -> None:
        del self._encoder, self._engines, self._decoder


def _no_provider(name: str) -> str:
    """Why ONNX Runtime has no provider, "CUDA" or "CPU"; empty where it has.

    Whether its libraries are installed shows when a session is opened, which takes seconds and is done once.
    """
    try:
        from diinn.runtime.util.onnx_runtime import SUFFIX, ort
    except ImportError as error:
        return str(error)
    if f"{name}{SUFFIX}" in ort.get_available_providers():
        return ""
    return f"onnxruntime {ort.__version__} has no {name} provider: pip install onnxruntime-gpu"


def _layers(bundle: Bundle, options: BackendOptions) -> dict[str, Any]:
    """The decoder's weights (``Bundle.layers``). Raises InputError for a bundle or options that have no kernel."""
    if options.provider is not None:
        raise InputError(f"--provider {options.provider} is of ONNX Runtime: leave it out with CUDA")
    if options.precision not in (None, "fp16"):
        other = "--provider openvino" if options.precision == "bf16" else "--backend tensorrt"
        raise InputError(f"the cuda backend decodes in fp16, not {options.precision}: use {other}")
    if "fp16" not in bundle.graphs:
        bundle.graph("decoder", "fp16")  # raises with the reason
    return bundle.layers()


def _engine_there(bundle: Bundle, options: BackendOptions, device: Device) -> bool:
    """Whether the cache has an encoder engine that was not found wrong."""
    try:
        ways = build.identities(bundle, "encoder", bundle.engine_precision(options.precision), device)
        return any(metadata.verify.get("passed", True) for way in ways for metadata in Cache().find(way))
    except DiinnError:  # no TensorRT
        return False
