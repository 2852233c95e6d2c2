"""Every decoder, from checkpoint to bundle to the runtime: the graphs, and what must not change a pixel."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import ramp
from diinn.export import graphs, writer
from diinn.runtime import InputError, SuperResolver
from diinn.runtime.geometry import grid
from diinn.runtime.geometry.view import View
from diinn.train import checkpoint, protocol
from diinn.train.config import parse
from diinn.train.model import ModelConfig, SuperResolutionModel

DECODERS = {
    "b": {"name": "diinn", "depth": 2, "width": 12, "modulation": "m"},
    "d": {"name": "diinn", "depth": 2, "width": 12, "modulation": "mz"},
    "e": {"name": "diinn", "depth": 2, "width": 12, "init_q": True},
    "liif": {"name": "liif", "depth": 2, "width": 12},
    "metasr": {"name": "metasr", "width": 12},
}


@pytest.fixture(scope="module", params=DECODERS, ids=list(DECODERS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle; its checkpoint stands beside it."""
    torch.manual_seed(0)
    values = {"encoder": {"name": "compact", "channels": 8, "blocks": 1}, "decoder": DECODERS[request.param]}
    model = SuperResolutionModel(parse(ModelConfig, values, "test"))
    path = tmp_path_factory.mktemp(request.param) / "model.pth"
    checkpoint.save(path, checkpoint.Checkpoint(model, (1.0, 4.0)))
    done = writer.export(path)
    assert max(max(row.runtime, row.engine) for row in done.rows) < 1e-5
    return done.path


def test_the_graphs_hold_what_engines_take(exported: Path) -> None:
    for name, forbidden in (("decoder", graphs.FORBIDDEN), ("encoder", graphs.FORBIDDEN | {"Slice", "Pad", "Expand"})):
        assert not {node.op_type for node in onnx.load(exported / f"{name}.onnx").graph.node} & forbidden


def test_the_bundle_says_whether_it_is_folded(exported: Path) -> None:
    description = json.loads((exported / "bundle.json").read_text())
    unfolded = description["architecture"]["decoder"].get("init_q", False)
    assert description["folded"] is not unfolded
    channels = [m["channels"] for m in description["maps"]]
    assert (channels == [9 * 8]) is unfolded  # then the map is the content itself


def test_the_runtime_is_the_model(exported: Path) -> None:
    model = checkpoint.load(exported.with_suffix(".pth")).model
    frame = ramp(11, 14)
    rgb = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1)
    with SuperResolver.open(exported) as resolver:
        assert resolver.bundle.layout is model.decoder.layout
        wanted = protocol.super_resolve(model, rgb, (29, 37)).permute(1, 2, 0).numpy()[..., ::-1]
        np.testing.assert_allclose(resolver.resize(frame, (37, 29), dtype=np.float32), wanted, atol=1e-5)
        part = resolver.roi(frame, (3.0, 2.0, 7.0, 5.0), (28, 20), dtype=np.float32)
        whole = resolver.resize(frame, (56, 44), dtype=np.float32)
        np.testing.assert_allclose(part, whole[8:28, 12:40], atol=1e-5)


def test_chunks_batches_and_bands_never_change_a_pixel(exported: Path) -> None:
    frames = [ramp(40, 21), ramp(40, 21)[::-1].copy()]
    views = [View.resize((50, 97)), View.roi((2.5, 3.25, 11.5, 30), (33, 64))]
    with SuperResolver.open(exported) as resolver:
        wanted = [resolver.decode(resolver.encode([f])[0], views, dtype=np.float32) for f in frames]
        together = [resolver.decode(e, views, dtype=np.float32) for e in resolver.encode(frames)]
        budget = resolver.bundle.workspace * 21 * (4 * resolver.bundle.radius + 1)
    with SuperResolver.open(exported, chunk=37, memory_budget=budget) as small:
        encoded = small.encode(frames)
        assert all(e.maps is None for e in encoded)  # in bands
        in_bands = [small.decode(e, views, dtype=np.float32) for e in encoded]
    for a, b, c in zip(wanted, together, in_bands, strict=True):
        for one, two, three in zip(a, b, c, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-6)
            np.testing.assert_allclose(one, three, atol=1e-5)


def test_remap_is_diinns_alone(exported: Path) -> None:
    v, u = np.mgrid[0:9, 0:12].astype(np.float32)
    with SuperResolver.open(exported) as resolver:
        if resolver.bundle.layout is grid.NEAREST:
            assert resolver.remap(ramp(9, 12), u, v).shape == (9, 12, 3)
        else:
            with pytest.raises(InputError, match="remap needs a DIINN model"):
                resolver.remap(ramp(9, 12), u, v)
