"""fp16 graphs: what is held in which type, what it loses, and that an overflow is seen before an engine makes it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import ramp
from diinn.benchmarks import scores
from diinn.export import arguments, fp16_acceptance, fp16_graph, graphs, reference, writer
from diinn.export.reference import Reference
from diinn.runtime import DiinnError, InputError
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.geometry import grid
from diinn.runtime.util.onnx_runtime import ort
from diinn.train import checkpoint, degradation, protocol
from diinn.train.config import parse
from diinn.train.model import ModelConfig, SuperResolutionModel
from diinn.train.photographs import find_images, read_rgb
from onnx import ModelProto

DECODERS = [
    *({"name": "diinn", "depth": 2, "modulation": m, "init_q": q} for m in ("m", "mz", "sz") for q in (False, True)),
    {"name": "liif", "depth": 2},
    {"name": "metasr"},
]
Pair = tuple[ModelProto, ModelProto]


def build(decoder: dict[str, object]) -> SuperResolutionModel:
    torch.manual_seed(0)
    values = {"encoder": {"name": "compact", "channels": 8, "blocks": 1}, "decoder": {"width": 12, **decoder}}
    return SuperResolutionModel(parse(ModelConfig, values, "test"))


def plain(model: SuperResolutionModel, folder: Path) -> Pair:
    return graphs.encoder(model, folder / "e.onnx"), graphs.decoder(model, folder / "d.onnx")


@pytest.fixture(params=DECODERS, ids=lambda d: "-".join(str(v) for v in d.values()))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Pair, grid.Layout]:
    model = build(request.param)
    return plain(model, tmp_path), model.decoder.layout


def types(model: ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    weights = {i.name: i.data_type for i in graph.initializer}
    return weights | {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}


@pytest.mark.parametrize("arguments", [False, True])
def test_what_is_held_in_which_type(pair: tuple[Pair, grid.Layout], arguments: bool) -> None:
    encoder, decoder = (fp16_graph.convert(graph, arguments=arguments) for graph in pair[0])
    for model in (encoder, decoder):
        found = types(model)
        for value in [*model.graph.input, *model.graph.output]:
            full = value.name in ("frame", "query", "rgb")
            assert found[value.name] == (fp16_graph.FULL if full else fp16_graph.HALF), value.name
        for node in model.graph.node:
            if node.op_type == "Sin":
                assert found[node.input[0]] == found[node.output[0]] == fp16_graph.FULL
    convolutions = [node for node in encoder.graph.node if node.op_type == "Conv"]
    kinds = types(encoder)
    for node in convolutions:  # unfolds move values, and have no kernel in fp16 in TensorRT 11.2
        unfolds = any(a.name == "group" and a.i > 1 for a in node.attribute)
        assert {kinds[name] for name in node.input} == {fp16_graph.FULL if unfolds else fp16_graph.HALF}, node.name
    makers = {name: node for node in decoder.graph.node for name in node.output}
    arguments_of = [makers[node.input[0]].op_type for node in decoder.graph.node if node.op_type == "Sin"]
    assert not arguments_of or ("Cast" in arguments_of) is not arguments  # from a product in fp16


def test_the_reference_is_onnx_runtime_in_fp32_and_near_it_in_fp16(pair: tuple[Pair, grid.Layout]) -> None:
    graphs_, layout = pair
    frame, dsize = ramp(9, 13).transpose(2, 0, 1), (31, 20)
    index, query = grid.resize((13, 9), dsize, layout).arrays()

    def in_onnxruntime(models: Pair) -> np.ndarray:
        encoder, decoder = (
            ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in models
        )
        maps = [v.name for v in models[0].graph.output]
        rows = [m.reshape(-1, m.shape[-1])[index] for m in encoder.run(maps, {"frame": frame[None]})]
        return decoder.run(["rgb"], {**dict(zip(maps, rows, strict=True)), "query": query})[0].reshape(20, 31, 3)

    np.testing.assert_allclose(Reference(*graphs_, layout).resize(frame, dsize), in_onnxruntime(graphs_), atol=1e-5)
    made = fp16_acceptance.make(*graphs_, layout)
    rounded = Reference(made.encoder, made.decoder, layout).resize(frame, dsize)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, in_onnxruntime((made.encoder, made.decoder)), atol=2e-3)
    assert 0 < np.abs(rounded - in_onnxruntime(graphs_)).max() < 4e-3


def test_an_overflow_is_seen_by_the_rounding_reference_and_by_the_ranges(tmp_path: Path) -> None:
    model = build(DECODERS[4])
    with torch.no_grad():  # maps of some 1e6, taken back by the last layer: harmless in fp32
        model.encoder.get_submodule("head").weight *= 100
        for parameter in model.decoder.get_submodule("modulation").parameters():
            parameter *= 3e4
        model.decoder.get_submodule("last").weight *= 1e-9
    both, layout = plain(model, tmp_path), model.decoder.layout
    with pytest.raises(DiinnError, match=r"differs from fp32 by (inf|nan|\d)"):
        fp16_acceptance.make(*both, layout)
    graphs_ = tuple(fp16_graph.convert(graph, arguments=False) for graph in both)
    assert max(fp16_acceptance.ranges(both, (graphs_[0], graphs_[1]), layout).values()) > fp16_graph.LARGEST


def test_a_weight_beyond_fp16_is_named(tmp_path: Path) -> None:
    model = build(DECODERS[0])
    with torch.no_grad():
        model.encoder.get_submodule("head").weight[0, 0, 0, 0] = 1e5
    with pytest.raises(DiinnError, match=r"encoder\.head\.weight reaches 1e\+05, fp16 ends at 65504: keep fp32"):
        fp16_graph.convert(plain(model, tmp_path)[0], arguments=False)


def test_near_overflow_is_named_though_nothing_is_lost(tmp_path: Path) -> None:
    model = build(DECODERS[4])
    with torch.no_grad():
        model.encoder.get_submodule("head").bias[:] = 40000.0  # exact in fp16; more than half of its range
        model.encoder.get_submodule("head").weight[:] = 0
        for name in ("blocks", "tail"):
            for parameter in model.encoder.get_submodule(name).parameters():
                parameter.zero_()
        for layer in model.decoder.get_submodule("modulation"):
            layer.weight *= 1e-6
    with pytest.raises(DiinnError, match="half of fp16's end is 32752: keep fp32"):
        fp16_acceptance.make(*plain(model, tmp_path), model.decoder.layout)


def test_a_bundle_without_fp16_says_why(tmp_path: Path) -> None:
    model = build(DECODERS[4])
    with torch.no_grad():
        model.decoder.get_submodule("modulation")[0].bias[0] = -1e7  # type: ignore[index]  # a unit that is always zero
    checkpoint.save(tmp_path / "wild.pth", checkpoint.Checkpoint(model, (1.0, 4.0)))
    bundle = bundles.load(writer.export(tmp_path / "wild.pth").path)
    assert [*bundle.graphs] == ["fp32"]
    with pytest.raises(InputError, match=r"has no fp16 graphs, only fp32: weight .* reaches 1e\+07"):
        bundle.graph("encoder", "fp16")


@pytest.mark.parametrize("name", bundles.shipped())
def test_shipped_fp16_graphs_are_what_todays_exporter_makes_and_stay_in_range(name: str) -> None:
    bundle = bundles.load(name)
    both = tuple(onnx.load(bundle.graph(role)) for role in ("encoder", "decoder"))
    made = fp16_acceptance.make(both[0], both[1], bundle.layout, bundle.dial)
    for role, model in (("encoder", made.encoder), ("decoder", made.decoder)):
        assert types(model) == types(onnx.load(bundle.graph(role, "fp16")))
    card = bundle.measured["fp16"]
    assert made.largest[1] <= fp16_acceptance.LARGEST_VALUE
    assert card["largest"]["magnitude"] == pytest.approx(made.largest[1], rel=1e-3)
    assert card["rms_to_fp32"] == pytest.approx(made.loss, rel=0.2)
    assert card["rms_with_fp16_sums"] == pytest.approx(made.half_sums, rel=0.2)
    assert made.half_sums > made.loss


@pytest.mark.parametrize("name", bundles.shipped())
def test_shipped_largest_arguments_are_what_todays_exporter_finds(name: str) -> None:
    bundle = bundles.load(name)
    encoder, decoder = (onnx.load(bundle.graph(role)) for role in ("encoder", "decoder"))
    found = arguments.largest(encoder, decoder, bundle.layout, bundle.dial)
    assert bundle.layers()["largest_argument"] == pytest.approx(found, rel=1e-3)


def test_fp16_sums_that_overflow_are_null_on_the_card(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = fp16_acceptance.loss
    monkeypatch.setattr(
        fp16_acceptance, "loss", lambda *given: np.inf if given[-1] is reference.half_sums else loss(*given)
    )
    made = writer.export(checkpoint_path, tmp_path / "overflow.diinn").path
    json.loads((made / "bundle.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert bundles.load(made).measured["fp16"]["rms_with_fp16_sums"] is None


def test_fp16_sums_are_rounded_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """2048 + 1 is 2048 in fp16: what is added one at a time is lost, sixteen at once are not."""
    rows = np.full((1, 33), 1, np.float16)
    rows[0, 0] = 2048
    columns = np.ones((33, 1), np.float16)
    assert reference._half_product(rows, columns).item() == 2048 + 15 + 16 + 1
    monkeypatch.setattr(reference, "STEP", 1)
    assert reference._half_product(rows, columns).item() == 2048


def test_with_one_step_for_all_products_fp16_sums_are_the_rounding_reference(
    pair: tuple[Pair, grid.Layout], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs_, layout = pair
    made = fp16_acceptance.make(*graphs_, layout)
    monkeypatch.setattr(reference, "STEP", 2**20)
    frame = ramp(9, 11).transpose(2, 0, 1)
    once, half = (
        Reference(made.encoder, made.decoder, layout, kind).resize(frame, (20, 17))
        for kind in (reference.rounding, reference.half_sums)
    )
    np.testing.assert_allclose(half, once, atol=5e-3)  # a bias is added after the sum is rounded


@pytest.mark.slow
@pytest.mark.parametrize("name", bundles.shipped())
def test_fp16_loses_no_more_than_a_fiftieth_of_a_decibel_on_set5(name: str, shared_data: Path) -> None:
    bundle = bundles.load(name)
    half = Reference(*(onnx.load(bundle.graph(r, "fp16")) for r in ("encoder", "decoder")), bundle.layout)
    losses = []

    def told_nothing(frame: np.ndarray) -> np.ndarray:
        return fp16_acceptance.with_strengths(frame, bundle.dial)[0]

    with scores.open_upscaler(name) as full:
        for path in find_images(shared_data / "benchmark" / "Set5"):
            hr = degradation.to_float(torch.from_numpy(read_rgb(path))).permute(2, 0, 1)
            for scale in (2, 3, 4):
                wanted = protocol.psnr(hr, scale, full)
                got = protocol.psnr(
                    hr,
                    scale,
                    lambda lr, shape: torch.from_numpy(
                        half.resize(fp16_acceptance.with_strengths(lr.numpy(), bundle.dial)[0], shape[::-1]).transpose(
                            2, 0, 1
                        )
                    ),
                )
                losses.append(wanted - got)
    assert np.reshape(losses, (-1, 3)).mean(0).max() <= 0.01  # mean over the set, at each scale; the gate is 0.02
