"""Export: what the graphs hold, that they agree with PyTorch, and that a failure leaves nothing."""

import collections
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT
from diinn.export import graphs, parity, to_onnx, writer
from diinn.runtime import DiinnError, SuperResolver
from diinn.runtime.bundles import bundle as bundles
from diinn.train import checkpoint


def operators(path: Path) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def test_the_decoder_holds_what_engines_take(bundle_path: Path) -> None:
    found = operators(bundle_path / "decoder.onnx")
    assert not found.keys() & {"Gather", "GridSample", "Resize", "Shape"}
    assert found["Sin"] == 3
    assert found["Gemm"] == 3 + 2 + 1  # synthesis, modulation of layers 1 and 2, last
    assert operators(bundle_path / "gather_decoder.onnx")["Gather"] == 3


def test_the_encoder_holds_plain_convolutions(bundle_path: Path) -> None:
    found = operators(bundle_path / "encoder.onnx")
    assert found["Conv"] == 1 + 2 + 1 + 1  # head, one block, tail, all modulation at once
    assert found.keys() <= {"Conv", "Relu", "Add", "Sub", "Div", "Transpose", "Split", "Constant"}


def test_opset_is_17(bundle_path: Path) -> None:
    for name in ("encoder", "decoder", "gather_decoder"):
        model = onnx.load(bundle_path / f"{name}.onnx")
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]


def test_parity_covers_sizes_scales_and_batches(bundle_path: Path, checkpoint_path: Path) -> None:
    rows = parity.compare(checkpoint.load(checkpoint_path).model, bundle_path)
    assert len({row.lr for row in rows}) >= 5
    assert {row.batch for row in rows} == {1, 3}
    assert any(row.scale != int(row.scale) for row in rows)
    assert max(max(row.runtime, row.engine) for row in rows) < 1e-5


def test_a_graph_that_differs_is_refused(bundle_path: Path, checkpoint_path: Path) -> None:
    other = checkpoint.load(checkpoint_path).model
    other.decoder.get_submodule("last").bias.data += 2e-4
    with pytest.raises(DiinnError, match="differ from PyTorch by"):
        parity.compare(other, bundle_path)


def test_the_workspace_is_what_the_graph_needs(bundle_path: Path) -> None:
    # The widest point is where the maps of 48 channels turn from planar to channels last; constants are small.
    maps_twice = 4 * 2 * 48
    assert maps_twice <= graphs.workspace_bytes(onnx.load(bundle_path / "encoder.onnx")) < maps_twice + 64


def test_the_command_prints_parity_and_writes_the_bundle(
    checkpoint_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"summary": {"Set5 x2": "34 dB"}}))
    out = tmp_path / "deep" / "x.diinn"
    args = [str(checkpoint_path), "--out", str(out), "--quality", str(card), "--licence", "mine"]
    assert to_onnx.main(args) == 0
    printed = capsys.readouterr().out
    assert "largest difference to PyTorch" in printed
    assert str(out) in printed
    bundle = bundles.load(out)
    assert bundle.quality["summary"] == {"Set5 x2": "34 dB"}
    assert bundle.licence == "mine"
    assert bundle.source["sha256"] == bundles.sha256(checkpoint_path)
    assert to_onnx.main(args) == 0  # replaces it
    assert [p.name for p in out.parent.iterdir()] == ["x.diinn"]


def test_nothing_is_left_when_parity_fails(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)
    assert to_onnx.main([str(checkpoint_path), "--out", str(tmp_path / "x.diinn")]) != 0
    assert "differ" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_not_replaced(
    checkpoint_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.diinn").mkdir()
    (tmp_path / "x.diinn" / "precious").write_text("data")
    assert to_onnx.main([str(checkpoint_path), "--out", str(tmp_path / "x.diinn")]) == 2
    assert "not a bundle" in capsys.readouterr().err
    assert (tmp_path / "x.diinn" / "precious").exists()
    assert to_onnx.main([str(checkpoint_path), "--out", str(tmp_path / "x.zip")]) == 2
    assert to_onnx.main([str(tmp_path / "none.pth")]) == 2
    assert to_onnx.main([str(checkpoint_path), "--quality", str(tmp_path / "none.json")]) == 2
    (tmp_path / "file").write_text("")
    assert to_onnx.main([str(checkpoint_path), "--out", str(tmp_path / "file" / "x.diinn")]) == 2


def test_the_paper_network_exports(tmp_path: Path) -> None:
    """RDN and a decoder as wide as the paper's, with fewer blocks."""
    from diinn.train.config import parse
    from diinn.train.model import ModelConfig, SuperResolutionModel

    torch.manual_seed(0)
    values = {"encoder": {"name": "rdn", "blocks": 2}, "decoder": {"name": "diinn", "depth": 4, "width": 256}}
    model = SuperResolutionModel(parse(ModelConfig, values, "test"))
    checkpoint.save(tmp_path / "rdn.pth", checkpoint.Checkpoint(model, (2.0, 4.0)))
    done = writer.export(tmp_path / "rdn.pth")
    with SuperResolver.open(done.path) as resolver:
        assert resolver.bundle.radius == 3 + 2 * 8 + 1
        assert resolver.backend.chunk == 1024
        assert np.isfinite(resolver.resize(np.zeros((8, 8, 3), np.uint8), (19, 17), dtype=np.float32)).all()


def test_export_runs_as_a_script(checkpoint_path: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, str(ROOT / "export" / "to_onnx.py"), str(checkpoint_path), "--out", "s.diinn"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.diinn" / "bundle.json").exists()


def test_a_bundle_is_not_exported_again(bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("nano", str(bundle_path)):
        assert to_onnx.main([model]) == 2
        assert f"{model} is a bundle already" in capsys.readouterr().err
    assert to_onnx.main(["nano", "--calib", str(tmp_path)]) == 2
    assert "does not change the shipped model nano" in capsys.readouterr().err
