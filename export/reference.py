"""The result of typed graphs when every tensor is rounded to its type, in NumPy.

ONNX Runtime's CPU provider runs fp16 nodes in fp32 inside and shows neither their rounding nor an overflow. Products
accumulate in fp32 here, as tensor cores do, and are rounded once; ``half_sums`` has them accumulate in fp16, which
TensorRT may pick where the tensors are fp16.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.geometry import grid
from diinn.runtime.util.onnx_runtime import ort
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import op_conv, op_gemm

Array = npt.NDArray[Any]
Evaluator = Callable[[ModelProto], Any]


class Conv(op_conv.Conv):
    """One product of weights and columns; a grouped convolution as the library does it."""

    def _run(self, X: Array, W: Array, B: Array | None = None, **attributes: Any) -> tuple[Array]:  # type: ignore[override]
        x, w = X.astype(np.float32), W.astype(np.float32)
        b = None if B is None else B.astype(np.float32)
        plain = attributes["group"] in (None, 1) and {*(attributes["strides"] or [1])} == {1}
        if not plain or {*(attributes["dilations"] or [1])} != {1}:
            return (super()._run(x, w, b, **attributes)[0].astype(X.dtype),)  # type: ignore[no-untyped-call]
        top, left, bottom, right = attributes["pads"] or (0, 0, 0, 0)
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))  # [B, C, H, W, kh, kw]
        out = np.tensordot(windows, w, axes=((1, 4, 5), (1, 2, 3)))  # [B, H, W, C]
        if b is not None:
            out += b
        return (out.transpose(0, 3, 1, 2).astype(X.dtype),)


class Gemm(op_gemm.Gemm_7):
    """Accumulated in fp32, rounded with its sum."""

    def _run(self, a: Array, b: Array, c: Array | None = None, *sums: Any, **attributes: Any) -> tuple[Array]:
        wide = [v if v is None else v.astype(np.float32) for v in (a, b, c)]
        return (super()._run(*wide, *sums, **attributes)[0].astype(a.dtype),)  # type: ignore[no-untyped-call]


STEP = 16  # products that one instruction of a tensor core adds before it rounds: mma.m16n8k16


class HalfConv(Conv):
    """As ``Conv``; one of fp16 accumulates in fp16."""

    def _run(self, X: Array, W: Array, B: Array | None = None, **attributes: Any) -> tuple[Array]:  # type: ignore[override]
        if X.dtype != np.float16 or attributes["group"] not in (None, 1) or {*(attributes["strides"] or [1])} != {1}:
            return super()._run(X, W, B, **attributes)
        top, left, bottom, right = attributes["pads"] or (0, 0, 0, 0)
        x = np.pad(X, ((0, 0), (0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(x, W.shape[2:], axis=(2, 3))  # [B, C, H, W, kh, kw]
        # Channels innermost, as kernels for tensor cores go through them.
        rows, columns = windows.transpose(0, 2, 3, 4, 5, 1), W.transpose(2, 3, 1, 0)
        out = _half_product(rows.reshape(*rows.shape[:3], -1), columns.reshape(-1, W.shape[0]))  # [B, H, W, C]
        out = out if B is None else _half(out + B)
        return (out.transpose(0, 3, 1, 2).astype(np.float16),)


class HalfGemm(Gemm):
    """As ``Gemm``; one of fp16 accumulates in fp16."""

    def _run(self, a: Array, b: Array, c: Array | None = None, *sums: Any, **attributes: Any) -> tuple[Array]:
        alpha, beta = (1.0 if attributes[name] is None else attributes[name] for name in ("alpha", "beta"))
        if a.dtype != np.float16 or (alpha, beta) != (1, 1) or attributes["transA"]:
            return super()._run(a, b, c, *sums, **attributes)
        out = _half_product(a, b.T if attributes["transB"] else b)
        return ((out if c is None else _half(out + c)).astype(np.float16),)


def _half(values: Array) -> Array:
    """Rounded to fp16, as float32."""
    return values.astype(np.float16).astype(np.float32)


def _half_product(rows: Array, columns: Array) -> Array:
    """``rows @ columns``, rounded to fp16 after every ``STEP`` products; within a step the sum is exact to fp32."""
    a, b = rows.astype(np.float32), columns.astype(np.float32)
    total = np.zeros((*a.shape[:-1], b.shape[1]), np.float32)
    for k in range(0, len(b), STEP):
        total = _half(total + a[..., k : k + STEP] @ b[k : k + STEP])
    return total


def half_sums(model: ModelProto) -> Any:
    """As ``rounding``, with fp16 accumulators where a product's operands are fp16."""
    named = [type("Conv", (HalfConv,), {}), type("Gemm", (HalfGemm,), {})]  # operators are found by these names
    return ReferenceEvaluator(model, new_ops=named)


def rounding(model: ModelProto) -> Any:
    """Runs a graph node by node, every tensor rounded to its type."""
    return ReferenceEvaluator(model, new_ops=[Conv, Gemm])


def fast(model: ModelProto) -> Any:
    """Runs a graph in ONNX Runtime on the CPU: fp16 in fp32."""
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


class Reference:
    """An encoder and a decoder graph of one model, from frame to RGB.

    evaluator: ``rounding``, ``half_sums`` or ``fast``
    """

    def __init__(
        self,
        encoder: ModelProto,
        decoder: ModelProto,
        layout: grid.Layout,
        evaluator: Evaluator = rounding,
    ) -> None:
        self.layout = layout
        self.maps = [v.name for v in encoder.graph.output]
        self._encoder, self._decoder = evaluator(encoder), evaluator(decoder)

    def inputs(self, frame: grid.Float32, dsize: tuple[int, int]) -> dict[str, Array]:
        """The decoder's inputs for ``resize``: gathered rows and query."""
        height, width = frame.shape[1:]
        index, query = grid.resize((width, height), dsize, self.layout).arrays()
        maps = list(self._encoder.run(self.maps, {"frame": frame[None]}))
        return {name: m.reshape(-1, m.shape[-1])[index] for name, m in zip(self.maps, maps, strict=True)} | {
            "query": query
        }

    def resize(self, frame: grid.Float32, dsize: tuple[int, int]) -> grid.Float32:
        """A frame float32 [planes, H, W], RGB in [0, 1] first, at ``dsize`` (width, height).

        Returns RGB float32 [h, w, 3], unclamped.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow must show in the result
            (rgb,) = list(self._decoder.run(["rgb"], self.inputs(frame, dsize)))
        return np.asarray(rgb, np.float32).reshape(dsize[1], dsize[0], 3)
