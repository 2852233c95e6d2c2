"""Bundles that were tampered with: one error that names what is wrong, never a wrong picture."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from diinn.runtime import BundleError, SuperResolver, grid
from diinn.runtime import bundle as bundles
from onnx import numpy_helper


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_path, tmp_path / "copy.diinn"))


def rehash(folder: Path) -> None:
    """Make bundle.json agree with the files again."""
    values = json.loads((folder / "bundle.json").read_text())
    values["files"] = {name: bundles.sha256(folder / name) for name in values["files"]}
    (folder / "bundle.json").write_text(json.dumps(values))


def edit(folder: Path, **fields: object) -> None:
    values = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(values | fields))


def test_a_bundle_describes_itself(bundle_path: Path) -> None:
    bundle = bundles.load(bundle_path)
    assert bundle.name == "tiny"
    assert bundle.scales == (1.0, 4.0)
    assert [m.channels for m in bundle.maps] == [16, 16, 16]
    assert bundle.layout is grid.NEAREST
    assert bundle.radius == 5


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "gather_decoder.onnx", "golden.npz"])
def test_changed_missing_or_truncated_files(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match="sha256"):
        bundles.load(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        bundles.load(copy)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"format": "zip"}, "does not describe a bundle"),
        ({"version": 99}, "bundle version 99"),
        ({"maps": []}, "maps"),
        ({"maps": [{"name": "map0", "channels": -3}]}, "maps"),
        ({"query": "local_y"}, "query"),
        ({"scales": [4, 1]}, "scales"),
        ({"scales": [1, float("nan")]}, "scales"),
        ({"scales": [1, 1e200]}, "scales"),
        ({"receptive_radius": 1.5}, "receptive_radius"),
        ({"workspace_bytes_per_pixel": 0}, "workspace_bytes_per_pixel"),
        ({"graphs": {"fp32": dict.fromkeys(("encoder", "decoder", "gather_decoder"), "x" * 999)}}, "graphs"),
        ({"graphs": {"fp32": {"encoder": "../../etc/passwd", "decoder": "d", "gather_decoder": "g"}}}, "graphs"),
        ({"graphs": {"fp16": {"encoder": "e.onnx", "decoder": "d.onnx"}}}, "graphs"),
        ({"measured": {"fp16": 3}}, "measured"),
        ({"files": {}}, "sha256"),
    ],
)
def test_fields_that_are_wrong(copy: Path, fields: dict[str, object], word: str) -> None:
    edit(copy, **fields)
    with pytest.raises(BundleError, match=word):
        SuperResolver.open(copy)


def test_graphs_that_do_not_fit_the_description(copy: Path) -> None:
    specs = [{"name": f"map{i}", "channels": 8} for i in range(3)]
    edit(copy, maps=specs)
    with pytest.raises(BundleError, match="expected float32"):
        SuperResolver.open(copy)
    edit(copy, maps=specs[:2])
    with pytest.raises(BundleError, match=r"bundle\.json says"):
        SuperResolver.open(copy)


def test_a_graph_that_is_no_graph(copy: Path) -> None:
    (copy / "encoder.onnx").write_bytes(b"not a graph")
    rehash(copy)
    with pytest.raises(BundleError, match="cannot open"):
        SuperResolver.open(copy)


@pytest.mark.parametrize("value", [np.nan, 3.0])
def test_weights_that_went_wrong_are_caught_by_the_golden_sample(copy: Path, value: float) -> None:
    model = onnx.load(copy / "encoder.onnx")
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = value
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, copy / "encoder.onnx")
    rehash(copy)
    with pytest.raises(BundleError, match="cannot be trusted"):
        SuperResolver.open(copy)


GOLDEN = {
    "missing": {"frame": np.zeros((4, 4, 3), np.uint8)},
    "endless tolerance": {"tolerance": np.float32(np.inf)},
    "tolerance of two": {"tolerance": np.zeros(2)},
    "size of one": {"resize_dsize": np.array([83])},
    "bomb": {"frame": np.zeros((6000, 6000), np.uint8)},
    "empty": b"",
    "garbage": b"PK garbage",
}


@pytest.mark.parametrize("change", GOLDEN)
def test_a_golden_sample_that_went_wrong(copy: Path, change: str) -> None:
    made = GOLDEN[change]
    if isinstance(made, bytes):
        (copy / "golden.npz").write_bytes(made)
    elif change == "missing":
        np.savez(copy / "golden.npz", **made)
    else:
        np.savez_compressed(copy / "golden.npz", **(bundles.load(copy).golden() | made))
    rehash(copy)
    with pytest.raises(BundleError, match="golden"):
        SuperResolver.open(copy)


@pytest.mark.parametrize("model", ["nothing", "no/such/place", "x.diinn", ""])
def test_bundles_that_are_not_there(model: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        bundles.load(model if model else tmp_path)


def test_a_shipped_name_wins_over_a_folder_of_that_name(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle_path, "small")
    assert bundles.find("small") == bundles.MODELS / "small.diinn"
    assert bundles.find("./small") == Path("small")


def test_a_checkpoint_is_no_bundle(checkpoint_path: Path) -> None:
    with pytest.raises(BundleError, match="export the checkpoint first"):
        bundles.load(checkpoint_path)


def test_fuzz_of_the_description(copy: Path) -> None:
    """bundle.json with bytes flipped, cut or fields replaced: a bundle that works, or a BundleError."""
    text = (copy / "bundle.json").read_text()
    rng = random.Random(5)
    odd: list[object] = [None, -1, 0, 1e308, "", [], {}, [[]], True, "x" * 999, {"a": {"a": {}}}]
    messages = []
    for _ in range(200):
        if rng.random() < 0.5:
            values = json.loads(text)
            values[rng.choice(list(values))] = rng.choice(odd)
            changed = json.dumps(values)
        else:
            at = rng.randrange(len(text))
            changed = text[:at] + chr(rng.randrange(32, 127)) + text[at + rng.randrange(3) :]
        (copy / "bundle.json").write_text(changed)
        try:
            SuperResolver.open(copy, check=False).close()
        except BundleError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not [m for m in messages if "\n" in m]


def test_every_shipped_bundle_passes_its_golden_sample() -> None:
    for name in bundles.shipped():
        with SuperResolver.open(name) as resolver:
            assert max(resolver.check().values()) < 1e-5
