"""The graphs and the engine worker against NVIDIA's own parser and builder, which build on a CPU (``tests/builder``)."""

import json
import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from conftest import ROOT
from diinn.export import graphs, half, writer
from diinn.runtime import bundle as bundles
from diinn.runtime import demo
from diinn.runtime.engines import build, profiles
from diinn.runtime.engines.cache import Cache, Key
from diinn.runtime.frames import planar_rgb
from diinn.train.config import parse
from diinn.train.model import ModelConfig, SuperResolutionModel

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
    key = Key(build.identity(bundle, role, precision, device), profile)
    timing = folder / f"timing-{key.name}"  # none was there before: reading one wants a GPU
    data, _ = build.build(bundle, key, device, build.BuildOptions(timing=timing, **options), Cache())
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


def warned(caplog: Log) -> list[str]:
    """What TensorRT warned of, but for its timing cache, which does nothing where nothing is timed."""
    said = [r.message for r in caplog.records if r.message.startswith("TensorRT: ")]
    return [message for message in said if message != f"TensorRT: {NO_TIMING}"]


@pytest.fixture
def nvidia(builder: Patch, tmp_path: Path, caplog: Log) -> Patch:
    builder.setenv("DIINN_BUILDER_NETWORK", str(tmp_path / "network.json"))
    caplog.set_level(logging.DEBUG, "diinn")
    return builder


def check(bundle: bundles.Bundle, precision: str, caplog: Log) -> None:
    """Both graphs are built for all targets, have the tensors that the bundle says, and nothing is warned of."""
    for role in build.ROLES:
        size, tensors = built(bundle, role, precision)
        assert size > 1000
        assert tensors == wanted(bundle, role, precision)
    assert warned(caplog) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.stem)
def test_every_graph_we_ship_is_built(nvidia: Patch, path: Path, precision: str, caplog: Log) -> None:
    check(bundles.load(path), precision, caplog)


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
            onnx.save(half.convert(plain, arguments=arguments), path)
            yield role, "fp16", path


@pytest.mark.parametrize("values", configurations(), ids=lambda v: "-".join(map(str, v["decoder"].values())))
def test_whatever_is_trained_is_built(nvidia: Patch, values: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SuperResolutionModel(parse(ModelConfig, values, "test"))
    planes = 5 if "dial" in values else 3
    bundle = SimpleNamespace(planes=planes, maps=graphs.map_specs(model), layout=model.decoder.layout)
    jobs = {}
    for role, precision, graph in graphs_of(model, tmp_path):
        profile = profiles.encoder(bundle) if role == "encoder" else profiles.decoder(bundle)  # type: ignore[arg-type]
        out = tmp_path / f"{graph.stem}.engine"
        job = build.Job(str(graph), precision, profile, 2**30, str(tmp_path / "timing"), None, str(out))
        jobs[graph.with_suffix(".json")] = role, precision, out
        graph.with_suffix(".json").write_text(job.text())
    code = (
        "import os, sys\n"
        "from diinn.runtime.engines import worker\n"
        "for path in sys.argv[1:]:\n"
        "    os.environ['DIINN_BUILDER_NETWORK'] = path + '.network'\n"
        "    assert worker.main(path) == 0, open(worker.Job.parse(open(path).read()).out + '.log.json').read()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *jobs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for path, (role, precision, out) in jobs.items():
        assert out.stat().st_size > 1000
        assert json.loads(Path(f"{path}.network").read_text()) == wanted(bundle, role, precision)
        said = json.loads(Path(f"{out}.log.json").read_text())
        assert [w for w in said["errors"] + said["warnings"] if w != NO_TIMING] == []
