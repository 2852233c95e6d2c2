"""Bundles that were tampered with: one error that names what is wrong, never a wrong picture."""

import contextlib
import io
import json
import os
import random
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from diinn.runtime import BundleError, SuperResolver
from diinn.runtime.backends.base import BackendOptions
from diinn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.bundles import files as bundle_files
from diinn.runtime.geometry import grid
from onnx import numpy_helper
from tiny import rehash


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_path, tmp_path / "copy.diinn"))


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
    with pytest.raises(BundleError, match=r"encoder\.onnx is damaged"):
        SuperResolver.open(copy)


@pytest.mark.parametrize("place", ["w.bin", "../w.bin", "link.bin", "absolute"])
def test_a_graph_with_weights_in_another_file_is_refused(copy: Path, place: str) -> None:
    """The graph's own hash is right, and the library would load them."""
    model = onnx.load(copy / "encoder.onnx")
    onnx.external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, copy / "encoder.onnx")
    weights = copy / "w.bin"
    if place == "absolute":
        place = str(weights)
    if place == "../w.bin":
        weights = Path(shutil.move(weights, copy.parent / "w.bin"))
    (copy / "link.bin").symlink_to(weights)
    model = onnx.load(copy / "encoder.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = place if entry.key == "location" else entry.value
    (copy / "encoder.onnx").write_bytes(model.SerializeToString())
    rehash(copy)
    with pytest.raises(BundleError, match=r"encoder\.onnx keeps weights in other files"):
        bundles.load(copy)


def test_an_estimator_with_weights_in_another_file_is_refused(copy: Path) -> None:
    model = onnx.load(copy / "estimator.onnx")
    onnx.save(model, copy / "estimator.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    rehash(copy)
    with pytest.raises(BundleError, match=r"estimator\.onnx keeps weights in other files"):
        bundles.load(copy)


def test_a_graph_cannot_be_called_what_is_not_checked_as_one(copy: Path) -> None:
    (copy / "encoder.npz").write_bytes((copy / "encoder.onnx").read_bytes())
    values = json.loads((copy / "bundle.json").read_text())
    values["graphs"]["fp32"]["encoder"] = "encoder.npz"
    values["files"]["encoder.npz"] = bundles.sha256(copy / "encoder.npz")
    edit(copy, **values)
    with pytest.raises(BundleError, match="graphs"):
        bundles.load(copy)


def test_what_is_exchanged_after_the_check_is_not_opened(copy: Path) -> None:
    """What was hashed and what is opened are the same bytes."""
    bundle = bundles.load(copy)
    for name, read in (
        ("encoder.onnx", lambda: OnnxRuntimeBackend(bundle, BackendOptions())),
        ("golden.npz", bundle.golden),
        ("layers.npz", bundle.layers),
    ):
        shutil.copy(bundles.MODELS / "nano.diinn" / name, copy / name)
        with pytest.raises(BundleError, match=f"{name} has sha256"):
            read()


@pytest.mark.parametrize(("name", "most"), [("bundle.json", 2**22), ("golden.npz", 2**26), ("encoder.onnx", 2**31 - 1)])
def test_files_larger_than_any_can_be_are_not_read(copy: Path, name: str, most: int) -> None:
    os.truncate(copy / name, 40 * 2**30)  # takes no room
    begun = time.monotonic()
    with pytest.raises(BundleError, match=rf"{name}': it is larger than {most / 2**20:g} MiB"):
        bundles.load(copy)
    assert time.monotonic() - begun < 5


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


def member(change: str) -> bytes:
    """An .npz whose one member, stored, went wrong in some way."""
    raw = io.BytesIO()
    np.save(raw, np.arange(64, dtype=np.float32))
    array = raw.getvalue()
    if change == "shape":
        raw = io.BytesIO()
        np.lib.format.write_array_header_1_0(raw, {"descr": "<f4", "fortran_order": False, "shape": (2**70,)})
        array = raw.getvalue()
    if change == "header":
        array = array.replace(b"{'descr': '<f4'", b"{'descr': '<O4'")
    out = io.BytesIO()
    kind = {"lzma": zipfile.ZIP_LZMA, "bzip2": zipfile.ZIP_BZIP2, "deflate": zipfile.ZIP_DEFLATED}.get(change, 0)
    with zipfile.ZipFile(out, "w", kind) as archive:
        archive.writestr("frame.npy", array)
    data = bytearray(out.getvalue())
    here, there = 0, data.index(b"PK\1\2")
    if change == "encrypted":
        data[here + 6] |= 1
        data[there + 8] |= 1
    if change == "method":
        data[here + 8] = data[there + 10] = 93
    if change == "version":
        data[here + 4] = data[there + 6] = 99
    if kind:
        for at in range(50, 90):
            data[at] ^= 0x5A
    return bytes(data)


@pytest.mark.parametrize("change", ["shape", "header", "lzma", "bzip2", "deflate", "encrypted", "method", "version"])
def test_damaged_members_of_arrays_are_one_line(change: str) -> None:
    with pytest.raises(BundleError, match=r"^golden\.npz cannot be read \(.*: export it again") as error:
        bundle_files.arrays(member(change), Path("golden.npz"))
    assert str(error.value).isprintable()


def test_mutated_arrays_are_arrays_or_one_line() -> None:
    rng, whole = random.Random(4), member("none")
    failed = 0
    for _ in range(500):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 3)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        with contextlib.suppress(BundleError):
            bundle_files.arrays(bytes(changed), Path("golden.npz"))
            continue
        failed += 1
    assert failed > 100


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
