"""ONNX Runtime on the CPU, with a decoder of our own and the encoder by a GPU or OpenVINO; or any of its providers."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diinn.runtime.backends import openvino
from diinn.runtime.backends.base import Backend
from diinn.runtime.bundles import golden
from diinn.runtime.bundles.bundle import Levels
from diinn.runtime.cpu import compiler
from diinn.runtime.cpu.decoder import FusedDecoder, Launch, check_width
from diinn.runtime.errors import BundleError, DiinnError, InputError, unknown
from diinn.runtime.geometry.grid import Float32
from diinn.runtime.geometry.segments import Chunk, Segment, write
from diinn.runtime.geometry.view import View
from diinn.runtime.images.arrays import Image, planar_rgb
from diinn.runtime.noise.strength import NONE
from diinn.runtime.util import cuda_driver
from diinn.runtime.util.onnx_runtime import (
    SUFFIX,
    Tensor,
    check_tensors,
    failed,
    open_session,
    ort,
    session_options,
)

log = logging.getLogger(__name__)
CHOICE = "DIINN_CPU_DECODER"  # of the environment: where no decoder is asked for
CHOICES = {"fused": "fused", "onnxruntime": "onnx"}
ENCODER = "DIINN_CPU_ENCODER"  # of the environment: where neither provider nor precision is asked for
ENCODERS = ("openvino", "onnxruntime")
CPU_PIXELS = 4 * 160 * 120  # of all frames encoded together


class OnnxRuntimeBackend(Backend):
    """Encoder with all threads on one frame; decoder by the CPU's own kernel, or a graph with the gather inside.

    Small matrix products gain little from threads inside an operator, so on the CPU each thread decodes its own piece:
    by the graph 44 ms instead of 71 for 307,200 queries of a 4 x 32 decoder on two cores. The gather inside the graph
    saves another tenth over one in NumPy. int8 graphs are gathered for in NumPy.
    """

    name = "onnxruntime"

    def load(self) -> None:
        wanted, provider = self.options.precision, self.options.provider
        device = self._openvino_device()
        if wanted not in (None, "fp32", "int8") and device is None:
            raise InputError(
                f"provider {provider or 'cpu'} computes in fp32, not {wanted}: use --provider openvino or "
                "--backend tensorrt"
            )
        self._gathers = wanted != "int8"
        self.provider = "CPU" + SUFFIX if device else _provider(provider)
        self._chunk = self.chunk
        self._open_encoder()
        self._fused = self._own_decoder()
        self._open_decoder()
        self._openvino_asked = device is not None
        if device is not None:
            self._take_to_openvino(device, [wanted] if wanted else [*openvino.worthwhile(device), "fp32"])
        elif provider is None and wanted in (None, "fp32"):
            self._take_encoder_to_gpu()
            if wanted is None and self._encoder_name == "CPU" and os.environ.get(ENCODER) != "onnxruntime":
                self._take_to_openvino_if_faster()

    def _openvino_device(self) -> str | None:
        """The device of OpenVINO's that is asked for, by its name or by a precision that only OpenVINO has."""
        wanted, provider, chosen = self.options.precision, self.options.provider, os.environ.get(ENCODER)
        if chosen is not None and chosen not in ENCODERS:
            raise InputError(unknown(ENCODER, chosen, ENCODERS))
        device = openvino.device_of(chosen if provider is None and wanted is None else provider)
        if device is None and provider is None and wanted in openvino.HALVES:
            return "CPU"
        if device is not None and wanted not in (None, *openvino.HINTS):
            raise InputError(f"OpenVINO computes in {', '.join(openvino.HINTS)}, not {wanted}: use --provider cpu")
        return device

    def _open_encoder(self) -> None:
        precision, kind = ("fp32", np.float32) if self._gathers else ("int8", np.float16)
        threads = self.options.thread_count
        self.workers = threads if self.provider == "CPU" + SUFFIX else 1
        self.chunk, self.tolerance = self._chunk, None if self._gathers else golden.SATURATED
        self._encoder = self._session("encoder", precision, threads, self.provider)
        check_tensors(
            self._encoder,
            self.bundle.graph("encoder", precision),
            {"frame": (np.float32, [None, self.bundle.planes, None, None])},
            {m.name: (kind, [None, None, None, m.channels]) for m in self.bundle.maps},
        )
        self._encoder_device = self._encoder_name = self.provider.removesuffix(SUFFIX)
        self._leaves_openvino = False

    def _wanted_decoder(self) -> str | None:
        """Which decoder is asked for, by the options or the environment."""
        chosen = os.environ.get(CHOICE)
        if self.options.decoder is not None or chosen is None:
            return self.options.decoder
        if chosen not in CHOICES:
            raise InputError(unknown(CHOICE, chosen, CHOICES))
        return CHOICES[chosen]

    def _own_decoder(self) -> FusedDecoder | None:
        """The CPU's own kernel, unless another decoder is asked for or it cannot be had."""
        wanted = self._wanted_decoder()
        if wanted == "onnx":
            return None
        try:
            if not self._gathers or self.provider != "CPU" + SUFFIX:
                what = f"on {self.provider.removesuffix(SUFFIX)}" if self._gathers else "in int8"
                raise InputError(f"the fused decoder of a CPU does not compute {what}: leave out --decoder")
            layers = self.bundle.layers()
            check_width(layers["first"].shape[0])  # before anything is compiled
            return FusedDecoder(layers, compiler.library())
        except BundleError:
            raise
        except DiinnError as error:
            if wanted == "fused":
                raise
            missing = isinstance(error, InputError)  # else it is there and broken
            log.log(logging.INFO if missing else logging.WARNING, "ONNX Runtime decodes: %s", error)
            return None

    def _open_decoder(self) -> None:
        """Where the CPU's own kernel does not decode."""
        self._decoder: ort.InferenceSession | None = None
        self._decoder_name = self.provider.removesuffix(SUFFIX)
        if self._fused is not None:
            return
        role, precision = ("gather_decoder", "fp32") if self._gathers else ("decoder", "int8")
        self._decoder = self._session(role, precision, 1, self.provider)
        kind = np.float32 if self._gathers else np.float16
        inputs: dict[str, Tensor] = {m.name: (kind, [None, m.channels]) for m in self.bundle.maps}
        if self._gathers:
            inputs["index"] = (np.int32, [None])
        inputs["query"] = (np.float32, [None, len(self.bundle.layout.columns)])
        check_tensors(self._decoder, self.bundle.graph(role, precision), inputs, {"rgb": (np.float32, [None, 3])})

    def retreat(self, why: DiinnError) -> bool:
        if self._leaves_openvino:
            log.warning("ONNX Runtime encodes, not OpenVINO: %s", why)
        elif self._fused is not None and self.options.decoder != "fused" and not self._openvino_asked:
            log.warning("ONNX Runtime decodes, not the compiled decoder: %s", why)
            self._fused = None
        else:
            return False
        self._open_encoder()
        self._open_decoder()
        return True

    def _take_to_openvino_if_faster(self) -> None:
        """Have OpenVINO compute, on a processor where it is much faster, if it is there."""
        precisions = openvino.worthwhile("CPU")
        if not precisions:
            return
        try:
            self._take_to_openvino("CPU", precisions)
            self._leaves_openvino = True
        except DiinnError as error:
            missing = isinstance(error, InputError)  # else it is there and broken
            log.log(logging.INFO if missing else logging.WARNING, "ONNX Runtime encodes: %s", error)
            if self._encoder_name != "CPU":
                self._open_encoder()
                self._open_decoder()

    def _take_to_openvino(self, device: str, precisions: Sequence[str]) -> None:
        """Have OpenVINO encode, and decode where it is faster than ONNX Runtime.

        In the first precision whose pictures are near enough to ONNX Runtime's, or the one that is asked for.
        """
        openvino.require(device)
        frame = golden.soft_frame()
        dsize = 2 * frame.shape[1], 2 * frame.shape[0]
        right, plain = self._sample(frame, dsize).clip(0, 1), self._decoder
        may_decode = plain is not None and self._wanted_decoder() is None
        for precision, decodes in openvino.plans(self.bundle, device, precisions, may_decode=may_decode):
            self._encoder = self._openvino_session("encoder", precision, device)
            self._decoder = self._openvino_session("gather_decoder", precision, device) if decodes else plain
            self._encoder_device, self._encoder_name = device, openvino.named(device, precision)
            self._decoder_name = self._encoder_name if decodes else "CPU"
            self.tolerance = openvino.TOLERANCES.get(precision)
            self.chunk = self.options.chunk or (openvino.CHUNK if decodes else self._chunk)
            self.workers = 1 if decodes else self.options.thread_count
            gap = float(np.sqrt(np.mean((self._sample(frame, dsize).clip(0, 1) - right) ** 2)))
            most = openvino.largest_gap(precision)
            if gap <= most or precision == self.options.precision:
                return
        raise InputError(
            f"OpenVINO in {precision} differs by {gap:.2g} rms, {most:.2g} is allowed: --precision {precision} lifts it"
        )

    def _take_encoder_to_gpu(self) -> None:
        """Move the encoder, which is most of the work, to a GPU if one works and gives what the CPU gives.

        A provider that opens may still lack cuDNN, or code for the device.
        """
        cuda = "CUDA" + SUFFIX
        if cuda not in ort.get_available_providers():
            return
        missing = cuda_driver.missing()
        if missing:  # an ONNX Runtime for GPUs is installed, so one was meant to be used
            log.warning("the encoder runs on the CPU: %s", missing)
            return
        on_cpu, frame = self._encoder, golden.frame()
        dsize = frame.shape[1] + 7, frame.shape[0] + 5
        right = self._sample(frame, dsize)
        try:
            self._encoder = self._session("encoder", "fp32", 1, cuda)
            gap = float(np.abs(self._sample(frame, dsize) - right).max())
            tolerance = min(float(self.bundle.golden()["tolerance"]), golden.LARGEST_TOLERANCE)
            if not gap <= tolerance:
                raise DiinnError(f"provider CUDA differs by {gap:.3g} from it (tolerance {tolerance:.3g})")
        except (
            DiinnError,
            KeyError,
            ValueError,
            TypeError,
        ) as error:  # a damaged sample is reported where it is replayed
            self._encoder = on_cpu
            log.warning("the encoder runs on the CPU: %s", error)
        else:
            self._encoder_device = self._encoder_name = "CUDA"

    def _sample(self, frame: Image, dsize: tuple[int, int]) -> Float32:
        """A frame without noise at another size (width, height): [h, w, 3] BGR, units of [0, 1]."""
        height, width = frame.shape[:2]
        queries = View.resize(dsize).queries((width, height), self.bundle.scales, self.bundle.layout)
        out = np.empty((*queries.shape, 3), np.float32)
        maps = self.encode([frame], [self.bundle.levels(NONE)])
        segment = Segment(queries, slice(0, queries.count), 0, out.reshape(-1, 3), 0.0)
        self.decode(maps, [segment])
        return out

    def _session(self, role: str, precision: str, threads: int, provider: str) -> ort.InferenceSession:
        path: Path = self.bundle.graph(role, precision)
        content = self.bundle.graph_content(role, precision)
        return open_session(content, path, provider.removesuffix(SUFFIX), session_options(threads))

    def _openvino_session(self, role: str, precision: str, device: str) -> ort.InferenceSession:
        path, content = self.bundle.graph(role), self.bundle.graph_content(role)
        return openvino.open_session(content, path, device, precision, self.options.thread_count, session_options(1))

    def close(self) -> None:
        if not self.closed:
            super().close()
            del self._encoder, self._decoder, self._fused

    def describe(self) -> str:
        threads = self.options.thread_count if self.provider == "CPU" + SUFFIX else 1
        said = f", {threads} threads" if threads > 1 else ""
        decoder = f"fused {self._fused.instructions}" if self._fused is not None else self._decoder_name
        return f"onnxruntime {ort.__version__} (encoder {self._encoder_name}, decoder {decoder}{said})"

    def max_batch(self, size: tuple[int, int]) -> int | None:
        """On the CPU as many as keep a layer's activations small.

        Four frames of 320x240 together take a fifth longer than one after the other, with either shipped model; four of
        160x120 do not.
        """
        return max(1, CPU_PIXELS // (size[0] * size[1])) if self._encoder_device == "CPU" else None

    def encode(self, frames: Sequence[Image], levels: Sequence[Levels]) -> list[Float32]:
        batch = np.concatenate([planar_rgb(frame, inputs) for frame, inputs in zip(frames, levels, strict=True)])
        maps = self._call(self._encoder, [m.name for m in self.bundle.maps], {"frame": batch})
        return [m.reshape(-1, m.shape[-1]) for m in maps]

    def decode(self, maps: list[Float32], segments: Sequence[Segment]) -> None:
        fused = self._fused
        if fused is None:
            super().decode(maps, segments)
            return
        launch = Launch(maps, segments)
        self.in_workers(launch.pieces(self.chunk), lambda piece: fused.decode(launch, *piece))

    def run_chunk(self, maps: list[Float32], chunk: Chunk) -> None:
        index, query = self.fill_inputs(chunk)
        feed: dict[str, Any] = {spec.name: rows for spec, rows in zip(self.bundle.maps, maps, strict=True)}
        if self._gathers:
            feed["index"] = index
        else:
            feed = {name: rows[index] for name, rows in feed.items()}
        assert self._decoder is not None
        write(chunk, self._call(self._decoder, ["rgb"], {**feed, "query": query})[0])

    @staticmethod
    def _call(session: ort.InferenceSession, outputs: list[str], feed: dict[str, Any]) -> list[Float32]:
        try:
            return session.run(outputs, feed)  # type: ignore[no-any-return]
        except Exception as error:
            raise failed(error) from error


def _provider(name: str | None) -> str:
    """Full name of an execution provider given as "cpu", "CUDA" or "CUDAExecutionProvider"."""
    available: dict[str, str] = {p.removesuffix(SUFFIX).lower(): p for p in ort.get_available_providers()}
    key = (name or "cpu").removesuffix(SUFFIX).lower()
    if "tensorrt" in key:
        raise InputError(f"--provider {name}: its engines would not be compared with the CPU: use --backend tensorrt")
    if key not in available:
        raise InputError(unknown("provider", name, available) + "; another build of onnxruntime may offer it")
    return available[key]
