"""What NVIDIA's builder makes of a model's engines: layers, copies and memory, before and after; needs no GPU.

``diinn-bench engine_layers small nano`` builds with TensorRT for RTX (``pip install 'diinn[nvidia-builder]'``). It has
TensorRT's parser, builder and messages. A generated kernel that is named after Transpose and Slice alone is a copy.
"""

import argparse
import importlib
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from diinn.export import fp16_graph
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.engines import profiles
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.util.command_line import Parser
from rich import box
from rich.console import Console
from rich.table import Table

BUILDER = "tensorrt_rtx_bindings"
HEADS = ("model", "engine", "layers", "not generated", "generated kernels", "activations, MB", "engine, kB")
WAITS = {"signal", "wait", "shape_call"}  # between streams, and of shapes: no work


@dataclass(frozen=True)
class Built:
    """One engine. kinds: how many layers there are of each kind; generated: names of kernels it made itself."""

    kinds: Counter[str]
    generated: list[str]
    activations: int
    size: int


def build(library: Any, graph: Path, profile: Profile, change: Callable[[Any], object] | None = None) -> Built:
    """Build a graph for compute capability 8.6 and read the layers from the messages. Raises DiinnError."""

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            self.lines.append(msg)

    log = Log()
    builder = library.Builder(log)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise DiinnError(f"{graph.name} is not read: {parser.get_error(0)}")
    kept = change(network) if change is not None else None
    config = builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)
    config.num_compute_capabilities = 1
    config.set_compute_capability(library.ComputeCapability.SM86, 0)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    shapes = builder.create_optimization_profile()
    for name, most in profile.most.items():
        shapes.set_shape(name, profile.least[name], profile.opt[name], most)
    config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    del kept
    if plan is None:
        raise DiinnError(f"{graph.name} is not built: {log.lines[-1]}")
    layers = re.findall(r"^Name: (\S+), LayerType: (\w+)", "\n".join(log.lines), re.MULTILINE)
    memory = re.findall(r"Total Activation Memory: (\d+)", "\n".join(log.lines))
    generated = [re.sub(r"_myl\d+_\d+$", "", name).removeprefix("__myl_") for name, kind in layers if kind == "kgen"]
    return Built(Counter(kind for _, kind in layers), generated, int(memory[-1]), plan.nbytes)


def cases(bundle: bundles.Bundle, folder: Path) -> list[tuple[str, Path, Profile, bool]]:
    """Name, graph, profile, and whether the maps are given convolutions of their own; other graphs go to ``folder``."""
    arguments = folder / "decoder.onnx"
    onnx.save(fp16_graph.convert(onnx.load(bundle.graph("decoder", "fp32")), arguments=True), arguments)
    encoder, full, few = profiles.encoder(bundle), profiles.decoder(bundle), profiles.decoder(bundle, small=True)
    samples = bundle.layout.samples
    some = Profile({name: (samples, channels) for name, (_, channels) in full.most.items()}, full.opt, full.most)
    return [
        ("encoder, maps by Transpose and Split", bundle.graph("encoder", "fp16"), encoder, False),
        ("encoder, a convolution for each map, HWC8", bundle.graph("encoder", "fp16"), encoder, True),
        ("decoder, 1 query to a full chunk", bundle.graph("decoder", "fp16"), some, False),
        ("decoder, full chunks alone", bundle.graph("decoder", "fp16"), full, False),
        ("decoder, a sixteenth of a chunk alone", bundle.graph("decoder", "fp16"), few, False),
        ("decoder, full chunks, products that make a sine's argument in fp32", arguments, full, False),
    ]


def _with_names_of(library: Any) -> Any:
    """``map_outputs`` as it is, with this builder in TensorRT's place."""
    name, before = "diinn.runtime.engines.map_outputs", sys.modules.get("tensorrt")
    sys.modules.pop(name, None)
    sys.modules["tensorrt"] = library
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[name], sys.modules["tensorrt"]
        if before is not None:
            sys.modules["tensorrt"] = before


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench engine_layers", description=__doc__)
    top.add_argument("model", nargs="+", help="bundles, or names of shipped models")
    return top


def run(args: argparse.Namespace) -> int:
    """Build and print."""
    try:
        library = importlib.import_module(BUILDER)
    except ImportError:
        raise InputError("no builder of NVIDIA's here: pip install 'diinn[nvidia-builder]'") from None
    map_outputs = _with_names_of(library)
    out = Table(*HEADS, box=box.MARKDOWN)
    for model in args.model:
        bundle = bundles.load(model)
        with tempfile.TemporaryDirectory() as folder:
            for name, graph, profile, own in cases(bundle, Path(folder)):
                found = build(library, graph, profile, map_outputs.channels_last if own else None)
                work = sum(count for kind, count in found.kinds.items() if kind not in WAITS)
                facts = (f"{work}", f"{work - len(found.generated)}", ", ".join(found.generated) or "none")
                out.add_row(bundle.name, name, *facts, f"{found.activations / 1e6:.1f}", f"{found.size / 1e3:.0f}")
    Console(width=300).print(out)
    return 0
