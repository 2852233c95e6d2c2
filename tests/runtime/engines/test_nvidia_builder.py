"""Graphs and engine worker against NVIDIA's own parser and builder, which build on a CPU (``tests/builder``)."""

import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT
from diinn.export import fp16_graph, graphs, writer
from diinn.runtime import DiinnError, InputError
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.engines import build, failure, profiles, versions
from diinn.runtime.engines.cache import Cache, Key
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.images.arrays import planar_rgb
from diinn.runtime.sources import demo
from diinn.train.config import parse
from diinn.train.model import ModelConfig, SuperResolutionModel
from onnx import helper, numpy_helper

Patch, Log = pytest.MonkeyPatch, pytest.LogCaptureFixture
COMPARED = ROOT / "benchmarks" / "results" / "comparison"
BUNDLES = [bundles.MODELS / "nano.diinn", bundles.MODELS / "small.diinn", *sorted(COMPARED.glob("*.diinn"))]


NO_TIMING = "The timing cache will not be used!"


def built(
    bundle: bundles.Bundle, role: str, precision: str, cameras: int = 1, **options: Any
) -> tuple[int, dict[str, Any]]:
    """Bytes of the engine that our worker builds, and the network's tensors as the parser sees them."""
    from host_device import HostDevice

    device, folder = HostDevice(), Cache().path.parent
    profile = profiles.decoder(bundle) if role == "decoder" else profiles.encoder(bundle, cameras=cameras)
    key = Key(build.identities(bundle, role, precision, device)[0], profile)
    timing = folder / f"timing-{key.name}"  # none was there before: reading one wants a GPU
    least = build.least_workspace(bundle, role, precision, profile)  # is held to be enough, in every test here
    given = build.BuildOptions(**{"timing": timing, "workspace": least} | options)
    data, _ = build.build(bundle, key, device, given, Cache())
    return len(data), json.loads((folder / "network.json").read_text())


def wanted(bundle: Any, role: str, precision: str) -> dict[str, Any]:
    """What the bundle says of an engine's tensors."""
    half = "FLOAT" if precision == "fp32" else "HALF"
    if role == "encoder":
        frame = {"frame": ["FLOAT", [-1, bundle.planes, -1, -1]]}
        return {"inputs": frame, "outputs": {m.name: [half, [-1, -1, -1, m.channels]] for m in bundle.maps}}
    rows = {m.name: [half, [-1, m.channels]] for m in bundle.maps}
    asked = {"query": ["FLOAT", [-1, len(bundle.layout.columns)]]}
    return {"inputs": rows | asked, "outputs": {"rgb": ["FLOAT", [-1, 3]]}}


def in_memory(tensors: dict[str, Any]) -> dict[str, Any]:
    """Shapes as they lie in memory: a map that is its own convolution's, [B, C, H, W], has its channels last there."""
    outputs = {
        name: [kind, [shape[0], *shape[2:], shape[1]] if len(shape) == 4 and shape[1] > 0 else shape]
        for name, (kind, shape) in tensors["outputs"].items()
    }
    return tensors | {"outputs": outputs}


def warned(caplog: Log) -> list[str]:
    """What TensorRT warned of, but for its timing cache, which does nothing where nothing is timed."""
    lines = [r.message for r in caplog.records if r.message.startswith("TensorRT: ")]
    return [line for line in lines if line != f"TensorRT: {NO_TIMING}"]


@pytest.fixture
def nvidia(builder: Patch, tmp_path: Path, caplog: Log) -> Patch:
    builder.setenv("DIINN_BUILDER_NETWORK", str(tmp_path / "network.json"))
    caplog.set_level(logging.DEBUG, "diinn")
    return builder


def check(bundle: bundles.Bundle, precision: str, caplog: Log, cameras: int = 1) -> None:
    """Both graphs are built for all targets, have the tensors that the bundle says, and nothing is warned of."""
    for role in build.ROLES:
        size, tensors = built(bundle, role, precision, cameras)
        assert size > 1000
        assert in_memory(tensors) == wanted(bundle, role, precision)
    assert warned(caplog) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.stem)
def test_every_graph_we_ship_is_built(nvidia: Patch, path: Path, precision: str, caplog: Log) -> None:
    check(bundles.load(path), precision, caplog, cameras=4 if precision == "fp32" else 1)


@pytest.mark.parametrize("path", BUNDLES[:2], ids=lambda path: path.stem)
def test_each_map_is_a_convolutions_own_output(nvidia: Patch, path: Path, caplog: Log) -> None:
    bundle = bundles.load(path)
    _, tensors = built(bundle, "encoder", "fp16")
    assert tensors["outputs"] == {m.name: ["HALF", [-1, m.channels, -1, -1]] for m in bundle.maps}
    assert warned(caplog) == []


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.stem)
def test_int8_graphs_are_built(nvidia: Patch, path: Path, tmp_path: Path, caplog: Log) -> None:
    frames = [planar_rgb(demo.frame(t, (24, 18)))[0] for t in (0.0, 9.0)]
    target = tmp_path / path.name
    made = writer.add_int8(bundles.load(path), frames, target)
    assert any("encoder" in name for name in made.layers)
    check(bundles.load(target), "int8", caplog)


def configurations() -> list[dict[str, Any]]:
    """Every decoder and variant, with encoders, widths and depths at random; some with a dial."""
    rng, found = random.Random(0), []
    kinds: list[dict[str, Any]] = [{"name": "liif"}, {"name": "metasr"}]
    kinds += [{"name": "diinn", "modulation": m, "init_q": q} for m in ("m", "mz", "sz") for q in (False, True)]
    for kind in kinds:
        rdn = {"name": "rdn", "growth": rng.choice([4, 9]), "blocks": 2, "layers": 2}
        encoder = rng.choice([rdn, {"name": "compact", "blocks": rng.randint(0, 3)}])
        decoder = kind | {"width": rng.choice([5, 12, 16, 48])}
        decoder |= {} if kind["name"] == "metasr" else {"depth": rng.randint(1, 4)}
        values = {"encoder": encoder | {"channels": rng.choice([4, 8, 24, 31])}, "decoder": decoder}
        found.append(values | ({"dial": {}} if rng.random() < 0.5 else {}))
    return found


def graphs_of(model: SuperResolutionModel, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Role, precision and graph: as the exporter makes them, sines' arguments in fp16 and in fp32 too."""
    for role, make in (("encoder", graphs.encoder), ("decoder", graphs.decoder)):
        plain = make(model, folder / f"{role}.onnx")
        yield role, "fp32", folder / f"{role}.onnx"
        for arguments in (False, True) if role == "decoder" else (False,):
            path = folder / f"{role}-{arguments}.fp16.onnx"
            typed = fp16_graph.convert(plain, arguments=arguments)
            onnx.save(typed, path)
            yield role, "fp16", path
            kinds = {i.name: i.data_type for i in typed.graph.initializer}
            unfolds = [n for n in typed.graph.node if any(a.name == "group" and a.i > 1 for a in n.attribute)]
            assert all(kinds[node.input[1]] == fp16_graph.FULL for node in unfolds)  # 11.2 has no kernel for it in fp16


@pytest.mark.parametrize("values", configurations(), ids=lambda v: "-".join(map(str, v["decoder"].values())))
def test_whatever_is_trained_is_built(nvidia: Patch, values: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SuperResolutionModel(parse(ModelConfig, values, "test"))
    planes = 5 if "dial" in values else 3
    bundle = SimpleNamespace(planes=planes, maps=graphs.map_specs(model), layout=model.decoder.layout)
    jobs = {}
    for role, precision, graph in graphs_of(model, tmp_path):
        if role == "encoder" and precision == "fp32":
            bundle.workspace = graphs.workspace_bytes(onnx.load(graph))
        profile = profiles.encoder(bundle) if role == "encoder" else profiles.decoder(bundle)  # type: ignore[arg-type]
        out = tmp_path / f"{graph.stem}.engine"
        least = build.least_workspace(bundle, role, precision, profile)  # type: ignore[arg-type]
        job = build.Job(str(graph), precision, versions.TYPED, profile, least, str(tmp_path / "timing"), None, str(out))
        jobs[graph.with_suffix(".json")] = role, precision, out
        graph.with_suffix(".json").write_text(job.text())
    code = (
        "import os, sys\n"
        "from diinn.runtime.engines import build_worker as worker\n"
        "for path in sys.argv[1:]:\n"
        "    os.environ['DIINN_BUILDER_NETWORK'] = path + '.network'\n"
        "    assert worker.main(path) == 0, open(worker.Job.parse(open(path).read()).out + '.log.json').read()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *jobs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for path, (role, precision, out) in jobs.items():
        assert out.stat().st_size > 1000
        assert in_memory(json.loads(Path(f"{path}.network").read_text())) == wanted(bundle, role, precision)
        log = json.loads(Path(f"{out}.log.json").read_text())
        assert [w for w in log["errors"] + log["warnings"] if w != NO_TIMING] == []


# What it refuses, in its own words


def decoder_of(bundle: bundles.Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.graph("decoder", "fp16"))


def without_a_cast(model: onnx.ModelProto) -> onnx.ModelProto:
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    for node in model.graph.node:
        node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]
    model.graph.node.remove(cast)
    return model


def unknown_operator(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[0].op_type = "Relux"
    return model


def shaped(profile: Profile, change: Callable[[dict[str, Any]], object]) -> Profile:
    """A profile whose usual and largest shapes are changed."""
    plain = profile.plain()
    for kind in ("opt", "most"):
        change(plain[kind])
    return profiles.from_plain(plain)


def without(profile: Profile, name: str) -> Profile:
    return Profile(
        *({n: s for n, s in kind.items() if n != name} for kind in (profile.least, profile.opt, profile.most))
    )


def refused(
    bundle: bundles.Bundle, role: str, graph: Any = None, profile: Profile | None = None, **options: Any
) -> str:
    """What a build says that fails, one line: the decoder, or another graph, shapes or workspace."""
    from host_device import HostDevice

    device, before = HostDevice(), {*Cache().path.glob("*.engine")}
    key = Key(build.identities(bundle, role, "fp16", device)[0], profile or getattr(profiles, role)(bundle))
    with pytest.MonkeyPatch.context() as patch:
        if graph is not None:
            data = graph if isinstance(graph, bytes) else graph.SerializeToString()
            patch.setattr(bundles.Bundle, "graph_content", lambda *_: data)
        with pytest.raises(DiinnError) as caught:
            build.build(bundle, key, device, build.BuildOptions(**options), Cache())
    assert "\n" not in str(caught.value)
    assert {*Cache().path.glob("*.engine")} == before
    assert not [*Cache().path.glob(".*.part")]
    return str(caught.value)


def test_graphs_that_are_not_taken(nvidia: Patch) -> None:
    small = bundles.load("small")
    message = refused(small, "decoder", without_a_cast(decoder_of(small)))
    assert "cannot read decoder.fp16.onnx" in message
    assert "must have same input types. But they are of types Half and Float" in message
    assert message.endswith(f": {failure.EXPORT}")
    message = refused(small, "decoder", unknown_operator(decoder_of(small)))
    assert "operator: Relux" in message
    assert message.endswith(f": {failure.EXPORT}")
    message = refused(small, "decoder", b"no graph")
    assert "Failed to parse the ONNX model" in message
    assert message.endswith(f": {failure.EXPORT}")


def test_shapes_that_are_not_taken(nvidia: Patch) -> None:
    small = bundles.load("small")
    full = profiles.decoder(small)
    plain = Profile({name: (1, channels) for name, (_, channels) in full.most.items()}, full.opt, full.most)
    cases = [
        ("decoder", without(plain, "map1"), "map1 is missing dimensions in profile"),
        ("decoder", shaped(plain, lambda kind: kind.update(map1=[5, 32])), "invalid shape profile"),
        ("decoder", shaped(plain, lambda kind: kind.update(map1=[kind["map1"][0], 99])), "max=99 but tensor has 32"),
        ("encoder", shaped(profiles.encoder(small), lambda kind: kind["frame"].__setitem__(1, 6)), "but tensor has 5"),
    ]
    for role, profile, words in cases:
        message = refused(small, role, profile=profile)
        assert words in message
        assert message.endswith(f": {failure.SHAPES.format(bundle=small.path)}")


def test_shapes_in_the_wrong_order_do_not_get_there(nvidia: Patch) -> None:
    profile = profiles.encoder(bundles.load("small"))
    with pytest.raises(InputError, match="is not 0 < min <= opt <= max"):
        Profile(profile.most, profile.opt, profile.least)
    job = build.Job("unused", "fp16", versions.TYPED, profile, 2**30, "unused", None, "unused")
    fields = json.loads(job.text())
    fields["profile"]["least"], fields["profile"]["most"] = fields["profile"]["most"], fields["profile"]["least"]
    with pytest.raises(InputError, match="is not 0 < min <= opt <= max"):
        build.Job.parse(json.dumps(fields))


def test_too_little_workspace(nvidia: Patch) -> None:
    small = bundles.load("small")
    for workspace, words in ((2**10, "within workspace limit"), (2**24, "OutOfMemory (Requested size was")):
        message = refused(small, "encoder", workspace=workspace)
        assert words in message
        assert message.endswith(f": {failure.RAISE.format(bundle=small.path, workspace=workspace // 2**20)}")


def test_turing_takes_no_fp32_product_in_a_decoder(nvidia: Patch) -> None:
    """Encoders are built for it; decoders make sines' arguments in fp32."""
    nvidia.setenv("DIINN_BUILDER_TARGETS", "SM75")
    small = bundles.load("small")
    for precision in ("fp32", "fp16"):
        assert built(small, "encoder", precision)[0] > 1000
    message = refused(small, "decoder")
    assert "for Turing (SM75): FP32 GEMM is not supported" in message
    assert message.endswith("engines are not for this GPU: use --backend cuda, or --backend onnxruntime")


# The API of TensorRT 10


@pytest.fixture
def nvidia10(older: Patch, tmp_path: Path, caplog: Log) -> Patch:
    older.setenv("DIINN_BUILDER_NETWORK", str(tmp_path / "network.json"))
    caplog.set_level(logging.DEBUG, "diinn")
    return older


@pytest.mark.aside
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.stem)
def test_every_graph_we_ship_is_built_by_the_builder_before(
    nvidia10: Patch, path: Path, precision: str, caplog: Log
) -> None:
    check(bundles.load(path), precision, caplog)


def quantised(kind: str) -> onnx.ModelProto:
    """x, quantised and dequantised, and nothing more or a convolution with int8 weights."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 32, 64, 64]) for name in "xy")
    scale, zero = np.float32(0.01), np.int8(0)
    tensors = {"scale": np.array(scale), "zero": np.array(zero), "weights": np.ones((32, 32, 3, 3), np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["xd" if kind == "convolution" else "y"]),
    ]
    if kind == "convolution":
        nodes += [
            helper.make_node("DequantizeLinear", ["weights", "scale", "zero"], ["wd"]),
            helper.make_node("Conv", ["xd", "wd"], ["y"], pads=[1, 1, 1, 1]),
        ]
    weights = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    graph = helper.make_graph(nodes, "one", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.aside
@pytest.mark.parametrize(
    ("kind", "message"),
    [("convolution", "dtype == myelinTypeFloat || dtype == myelinTypeHalf"), ("nothing more", "In generateForCurrent")],
)
def test_the_builder_before_takes_nothing_that_is_quantised(nvidia10: Patch, kind: str, message: str) -> None:
    """It has no int8 convolution, and for a pair of Q and DQ alone it asks for the GPU that is there: so there is no
    other way to write our int8 graphs that both would take on a CPU."""
    assert message in refused(bundles.load("small"), "encoder", quantised(kind))
