"""A bundle against the PyTorch model it came from, at sizes, scales and batches it was not traced at."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry import grid
from diinn.runtime.geometry.view import View
from diinn.runtime.noise.strength import NONE, PATCH, Strength
from diinn.runtime.super_resolver import Encoded, SuperResolver
from diinn.runtime.util.onnx_runtime import ort
from diinn.train import protocol
from diinn.train.estimator import Estimator
from diinn.train.model import SuperResolutionModel

TOLERANCE = 1e-4
ESTIMATE_TOLERANCE = 1e-2  # grey levels
# LR (width, height) and scale; tie-free or not, both sides go through the same integers
CASES = (((17, 13), 1.0), ((24, 18), 1.7), ((31, 40), 2.0), ((20, 33), 3.14), ((16, 16), 4.0), ((9, 27), 7.3))
BATCHES = (1, 3)


@dataclass(frozen=True)
class Row:
    """One case: LR and output (width, height), scale, batch, and the largest absolute difference in RGB.

    In units of [0, 1]; of the runtime's graphs and of the graph engines are built from.
    """

    lr: tuple[int, int]
    out: tuple[int, int]
    scale: float
    batch: int
    runtime: float
    engine: float


def compare(model: SuperResolutionModel, bundle: Path) -> list[Row]:
    """Every case of ``CASES`` × ``BATCHES``; DiinnError when one differs by more than ``TOLERANCE``."""
    with SuperResolver.open(bundle, backend="onnxruntime", provider="cpu", decoder="onnx") as resolver:
        engine = ort.InferenceSession(str(resolver.bundle.graph("decoder")), providers=["CPUExecutionProvider"])
        rows = list(_rows(model, resolver, engine))
    worst = max(rows, key=lambda r: max(r.runtime, r.engine, key=_nan_last))
    if not max(worst.runtime, worst.engine) <= TOLERANCE:
        raise DiinnError(
            f"the graphs differ from PyTorch by {max(worst.runtime, worst.engine):.3g} at {worst.lr[0]}x{worst.lr[1]}, "
            f"scale {worst.scale:g}, batch {worst.batch} (allowed: {TOLERANCE:g}): nothing was written"
        )
    return rows


def compare_estimator(network: Estimator, graph: Path) -> None:
    """DiinnError where the graph at ``graph`` gives another strength than ``network``, for any number of patches."""
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for count, reach in ((1, 2), (15, 60), (48, 255)):
        patches = rng.uniform(0, reach, (count, 3, PATCH, PATCH)).round().astype(np.float32)
        (found,) = session.run(["strength"], {"patches": patches})
        with torch.inference_mode():
            wanted = network.estimate(torch.from_numpy(patches)[None])[0].numpy()
        if not np.abs(found - wanted).max() <= ESTIMATE_TOLERANCE:
            raise DiinnError(f"the estimator's graph gives {found} where PyTorch gives {wanted}: nothing was written")


def _nan_last(value: float) -> float:
    return value if np.isfinite(value) else float("inf")


def _rows(model: SuperResolutionModel, resolver: SuperResolver, engine: ort.InferenceSession) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for (width, height), scale in CASES:
        dsize = (round(width * scale), round(height * scale))
        index, query = grid.resize((width, height), dsize, resolver.bundle.layout).arrays()
        for batch in BATCHES:
            frames = rng.uniform(0, 1, (batch, height, width, 3)).astype(np.float32)
            runtime = direct = 0.0
            dial = resolver.bundle.dial
            strengths = [Strength(*rng.uniform(0, (dial.noise, dial.compression))) if dial else NONE for _ in frames]
            for frame, encoded in zip(frames, resolver.encode(list(frames), strengths), strict=True):
                rgb = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1)
                strength = encoded.strength.noise, encoded.strength.compression
                wanted = protocol.super_resolve(model, rgb, dsize[::-1], strength).permute(1, 2, 0).numpy()
                ours = resolver.decode(encoded, [View.resize(dsize)], dtype=np.float32)[0][..., ::-1]
                runtime = max(runtime, float(np.abs(ours - wanted).max()), key=_nan_last)
                got = _engine_decode(engine, resolver, encoded, index, query).reshape(wanted.shape)
                direct = max(direct, float(np.abs(got - wanted).max()), key=_nan_last)
            yield Row((width, height), dsize, scale, batch, runtime, direct)


def _engine_decode(
    engine: ort.InferenceSession, resolver: SuperResolver, encoded: Encoded, index: grid.Int32, query: grid.Float32
) -> grid.Float32:
    rows = {
        spec.name: np.take(maps, index + encoded.offset, axis=0)
        for spec, maps in zip(resolver.bundle.maps, encoded.maps or [], strict=True)
    }
    return np.asarray(engine.run(["rgb"], {**rows, "query": query})[0], np.float32)
