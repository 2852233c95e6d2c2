"""Builds one engine in a process of its own: ``python -m diinn.runtime.engines.build_worker JOB.json PARENT``.

With ``--try`` in place of a job it makes a builder and ends.

A build takes minutes, cannot be interrupted and may be killed for memory on a small machine. In a process of its own it
can be ended, and its end can be explained. Writes the engine to the job's ``out`` and TensorRT's messages to
``out.log.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt as trt
from diinn.runtime.engines import map_outputs, profiles, versions
from diinn.runtime.engines.build import Job
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.errors import DiinnError, unknown
from diinn.runtime.util.private_files import FileRejected, read_own
from diinn.runtime.util.processes import die_with


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps TensorRT's warnings and errors; INFO and VERBOSE are dropped."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(msg)
        elif severity == trt.ILogger.WARNING:
            self.warnings.append(msg)


def build(job: Job, log: Log) -> bytes:
    """The serialised engine. Raises DiinnError; TensorRT's own messages are in ``log``."""
    rules = versions.rules(trt.__version__, job.route)
    builder = _builder(log)
    network: trt.INetworkDefinition = builder.create_network(
        versions.bits(trt.NetworkDefinitionCreationFlag, rules.network_flags)
    )
    _parse(trt.OnnxParser(network, log), job.graph)
    # Weights that it added live as long as this list.
    kept = [] if rules.constrained else map_outputs.channels_last(network)
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    config.clear_flag(trt.BuilderFlag.TF32)  # its 10 bits would make fp32 a lesser fp16
    for name in rules.builder_flags.get(job.precision, ()):
        config.set_flag(getattr(trt.BuilderFlag, name))
    if job.tactics is not None:
        _check_tactics(job.tactics)
    if job.tactics is not None and not config.set_tactic_sources(versions.bits(trt.TacticSource, job.tactics)):
        raise DiinnError(f"TensorRT {trt.__version__} refuses the tactic sources {', '.join(job.tactics)}")
    if rules.constrained and job.precision != "fp32":
        _hold_fp32(network)
    _add_profile(builder, config, job.profile)
    _take_timings(config, Path(job.timing), log)
    plan: trt.IHostMemory = builder.build_serialized_network(network, config)
    if plan is None:
        raise DiinnError("TensorRT could not build the engine")
    Path(job.out).with_suffix(".timing").write_bytes(bytes(config.get_timing_cache().serialize()))
    del kept
    return bytes(plan)


def _builder(log: Log) -> trt.Builder:
    try:
        return trt.Builder(log)
    except TypeError:  # "factory function returned nullptr"
        raise DiinnError("TensorRT finds no usable GPU: check the driver with nvidia-smi") from None


def _check_tactics(names: tuple[str, ...]) -> None:
    for name in names:
        if not hasattr(trt.TacticSource, name):
            valid = [n for n in dir(trt.TacticSource) if n.isupper()]
            raise DiinnError(f"--tacticSources: {unknown('library', name, valid)} in TensorRT {trt.__version__}")


def _parse(parser: trt.OnnxParser, graph: str) -> None:
    if not parser.parse_from_file(graph):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise DiinnError(f"TensorRT {trt.__version__} cannot read {Path(graph).name}: {errors}")


def _hold_fp32(network: trt.INetworkDefinition) -> None:
    """Mark every layer with an fp32 result to be computed in fp32, where types are only hints (8.x).

    Sines need it most. Layers whose inputs are dequantised are left out: they are to run in int8.
    """
    fixed = {trt.LayerType.CONSTANT, trt.LayerType.SHAPE, trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE}
    dequantised: set[str] = set()
    for i in range(network.num_layers):  # in the graph's order: inputs come first
        layer: trt.ILayer = network.get_layer(i)
        output: trt.ITensor = layer.get_output(0)
        if layer.type == trt.LayerType.DEQUANTIZE:
            dequantised.add(output.name)
        inputs: list[trt.ITensor] = [layer.get_input(k) for k in range(layer.num_inputs)]
        int8 = any(tensor is not None and tensor.name in dequantised for tensor in inputs)
        if layer.type in fixed or int8 or output.dtype != trt.DataType.FLOAT:
            continue
        layer.precision = trt.DataType.FLOAT
        for k in range(layer.num_outputs):
            layer.set_output_type(k, trt.DataType.FLOAT)


def _add_profile(builder: trt.Builder, config: trt.IBuilderConfig, profile: Profile) -> None:
    shapes: trt.IOptimizationProfile = builder.create_optimization_profile()
    for name, most in profile.most.items():
        try:
            shapes.set_shape(name, profile.least[name], profile.opt[name], most)
        except (RuntimeError, ValueError, TypeError) as error:
            raise DiinnError(f"TensorRT refuses the shapes of {name} up to {profiles.text(most)}: {error}") from None
    if config.add_optimization_profile(shapes) < 0:
        raise DiinnError(f"TensorRT refuses the profile {' '.join(profile.trtexec())}")


def _take_timings(config: trt.IBuilderConfig, path: Path, log: Log) -> None:
    """Timings of earlier builds; a file TensorRT does not take is left out."""
    known = b""
    if path.exists():
        try:
            known = read_own(path)
        except FileRejected as error:
            log.warnings.append(f"timing cache: {error}: measured anew")
    cache: trt.ITimingCache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        log.warnings.append(f"timing cache {path} is not of this TensorRT and GPU: measured anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)


def main(path: str) -> int:
    """Build the job; exit code 0 or 1, and the log either way."""
    job = Job.parse(Path(path).read_text(encoding="utf-8"))
    log, failed = Log(), ""
    try:
        Path(job.out).write_bytes(build(job, log))
    except (DiinnError, OSError) as error:
        failed = str(error)
    report = {"failed": failed, "errors": log.errors, "warnings": log.warnings}
    Path(f"{job.out}.log.json").write_text(json.dumps(report), encoding="utf-8")
    return 1 if failed else 0


def attempt() -> int:
    """Make a builder; exit code 0, or 1 with the reason on standard output."""
    try:
        _builder(Log())
    except DiinnError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    die_with(int(sys.argv[2]))
    sys.exit(attempt() if sys.argv[1] == "--try" else main(sys.argv[1]))
