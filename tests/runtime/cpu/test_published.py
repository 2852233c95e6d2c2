"""The CPU's decoder against the paper's own form in PyTorch and the exported graph in ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="no PyTorch: it makes models")
import torch
from diinn.export import graphs
from diinn.runtime.cpu import compiler
from diinn.runtime.cpu.decoder import FusedDecoder, Launch
from diinn.runtime.geometry import grid
from diinn.runtime.geometry.segments import Segment
from diinn.runtime.util.onnx_runtime import ort
from diinn.train.config import parse
from diinn.train.model import ModelConfig, SuperResolutionModel
from diinn.train.published import PublishedModel

LR, OUT = (12, 10), (41, 37)  # (width, height)
SHAPES = [(8, 1), (16, 2), (24, 6), (32, 3), (40, 5), (48, 4), (56, 2), (64, 4), (64, 6)]


@pytest.mark.skipif(not compiler.find_compiler(), reason="no C++ compiler here: apt-get install g++")
@pytest.mark.parametrize(("width", "depth"), SHAPES)
def test_three_forms_of_a_decoder_agree(tmp_path: Path, width: int, depth: int) -> None:
    torch.manual_seed(width + depth)
    encoder = {"name": "compact", "channels": 8, "blocks": 1}
    decoder = {"name": "diinn", "depth": depth, "width": width}
    model = SuperResolutionModel(parse(ModelConfig, {"encoder": encoder, "decoder": decoder}, "test")).eval()
    for parameter in model.decoder.parameters():
        parameter.data *= 2  # so that every term shows
    frame = torch.rand(1, 3, *LR[::-1])
    with torch.inference_mode():
        published = PublishedModel(model)(frame, OUT[::-1])[0].permute(1, 2, 0).reshape(-1, 3).numpy()
        maps = [rows.reshape(-1, width).numpy() for rows in model.encode(frame)]
    queries = grid.resize(LR, OUT)
    graphs.decoder(model, tmp_path / "decoder.onnx")
    session = ort.InferenceSession((tmp_path / "decoder.onnx").read_bytes())
    index, query = queries.arrays()
    feed = {spec.name: rows[index] for spec, rows in zip(graphs.map_specs(model), maps, strict=True)}
    (by_graph,) = session.run(["rgb"], {**feed, "query": query})
    out = np.empty((queries.count, 3), np.float32)
    launch = Launch(maps, [Segment(queries, slice(0, queries.count), 0, out, 0.0)])
    layers = graphs.layers(model)
    assert layers is not None
    FusedDecoder(layers, compiler.library()).decode(launch, 0, launch.count)
    assert published.std() > 0.01
    for form in (published, by_graph):
        gap = np.abs(out[:, ::-1] - form)
        assert gap.max() <= 1e-5
        assert np.sqrt(np.mean(gap**2)) < 5e-7 * max(1.0, float(np.abs(form).max()))
