"""Engines: what each version is given, builds and how they fail; ``tests/fakes`` plays TensorRT."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import FAKES, play
from diinn.export import fp16_graph
from diinn.runtime import DiinnError, InputError
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.engines import build, failure, profiles, versions
from diinn.runtime.engines.cache import Cache, Key
from diinn.runtime.util import cuda_driver, memory

Trt, Log = pytest.MonkeyPatch, pytest.LogCaptureFixture
BUILD = """
import logging, sys
logging.basicConfig(level="INFO")
sys.path.insert(0, sys.argv[1])
from diinn.runtime.bundles import bundle
from diinn.runtime.engines import build, profiles
from diinn.runtime.engines.cache import Cache, Key
from host_device import HostDevice
nano, device = bundle.load("nano"), HostDevice()
key = Key(build.identities(nano, "encoder", "fp16", device)[0], profiles.encoder(nano))
print(build.build(nano, key, device, build.BuildOptions(), Cache())[1].built)
"""


@pytest.fixture(scope="module")
def small() -> bundles.Bundle:
    return bundles.load("nano")


def build_encoder(bundle: bundles.Bundle, **options: object) -> dict[str, object]:
    """Build the encoder in the cache; what the double says of it."""
    data, _ = build.build(bundle, key_of(bundle), device(), build.BuildOptions(**options), Cache())  # type: ignore[arg-type]
    return json.loads(data.split(b"\n")[1])  # type: ignore[no-any-return]


def device():  # type: ignore[no-untyped-def]
    from host_device import HostDevice

    return HostDevice()


def key_of(bundle: bundles.Bundle, precision: str = "fp16") -> Key:
    return Key(build.identities(bundle, "encoder", precision, device())[0], profiles.encoder(bundle))


@pytest.mark.parametrize(
    ("version", "routes"),
    [
        ("8.5.2.2", [("flags", ("EXPLICIT_BATCH",))]),
        ("8.6.1", [("flags", ("EXPLICIT_BATCH",))]),
        ("10.3.0", [("typed", ("STRONGLY_TYPED",)), ("flags", ())]),
        ("10.11.0.33", [("typed", ("STRONGLY_TYPED",)), ("flags", ())]),
        ("10.12.0.36", [("typed", ("STRONGLY_TYPED",))]),
        ("11.4.0.106", [("typed", ("STRONGLY_TYPED",))]),
    ],
)
def test_ways_by_version(version: str, routes: list[tuple[str, tuple[str, ...]]]) -> None:
    assert [(way.route, way.network_flags) for way in versions.routes(version)] == routes
    for route, _ in routes:
        rules = versions.rules(version, route)
        assert rules.constrained is (route == "flags")
        assert rules.trtexec("int8")[0] == ("--int8" if rules.constrained else "--stronglyTyped")


@pytest.mark.parametrize("version", ["7.1.3", "8.4.1", "", "unknown"])
def test_versions_that_are_too_old(version: str) -> None:
    with pytest.raises(InputError, match=r"is not supported: install one of 8\.5"):
        versions.routes(version)


# Builds


@pytest.mark.parametrize("version", ["8.5.2.2", "8.6.1", "10.3.0", "10.16.1.11", "11.4.0.106"])
def test_what_each_version_is_told(trt: Trt, small: bundles.Bundle, version: str) -> None:
    play(version, trt)
    engine = build_encoder(small)
    eight = version.startswith("8")
    assert engine["version"] == version
    assert engine["network"] == (["EXPLICIT_BATCH"] if eight else ["STRONGLY_TYPED"])
    assert engine["flags"] == (["FP16", "OBEY_PRECISION_CONSTRAINTS"] if eight else [])  # and TF32 cleared
    assert engine["shapes"]["frame"] == [[1, 5, 16, 16], [1, 5, 120, 160], [1, 5, 480, 640]]  # type: ignore[index]
    assert engine["workspace"] == 2**30  # a quarter of what the double says is free
    assert bool(engine["held"]) is eight
    assert engine["held"] == engine["outputs"]


def test_sines_are_held_in_fp32_on_8(trt: Trt, small: bundles.Bundle) -> None:
    play("8.6.1", trt)
    identity = build.identities(small, "decoder", "fp16", device())[0]
    key = Key(identity, profiles.decoder(small))
    data, _ = build.build(small, key, device(), build.BuildOptions(), Cache())
    held = {*json.loads(data.split(b"\n")[1])["held"]}
    graph = small.graph("decoder", "fp16")
    sines = {node.name for node in onnx.load(graph).graph.node if node.op_type == "Sin"}
    assert sines <= held
    assert {*fp16_graph.kept_full(graph)} <= held


def test_a_build_is_kept_and_forced(trt: Trt, small: bundles.Bundle) -> None:
    cache, key = Cache(), key_of(small)
    _, first = build.build(small, key, device(), build.BuildOptions(), cache)
    assert build.build(small, key, device(), build.BuildOptions(), cache)[1] == first
    _, again = build.build(small, key, device(), build.BuildOptions(force=True), cache)
    assert again.built > first.built
    assert cache.timing().read_bytes() == b"timing:10.13.0.35"


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        ("parse", "TensorRT 10.13.0.35 cannot read .*encoder.fp16.onnx: In node 3: no importer for Sin"),
        ("shape", "refuses the shapes of frame up to 1x5x480x640"),
        ("profile", "refuses the profile --minShapes"),
        (
            "build",
            r"could not build the engine: Cuda Runtime \(out of memory\): close other programs, .* diinn-build .*nano",
        ),
        ("kill", "killed, most likely for memory: close .*diinn-build .*nano.diinn --workspace"),
        ("crash", r"the build crashed \(SIGSEGV\)"),
        ("gpu", "finds no usable GPU"),
        ("tactics", "refuses the tactic sources CUBLAS"),
    ],
)
def test_each_failure_is_one_message(trt: Trt, small: bundles.Bundle, failing: str, message: str) -> None:
    trt.setenv("DIINN_DOUBLE_FAIL", failing)
    with pytest.raises(DiinnError, match=message) as caught:
        build_encoder(small, tactics=("CUBLAS",))
    assert "\n" not in str(caught.value)
    assert not [*Cache().path.glob("*.engine")]
    assert not [*Cache().path.glob(".*.part")]


def test_a_timing_cache_of_another_version_is_left_out(trt: Trt, small: bundles.Bundle, tmp_path: Path) -> None:
    timing = tmp_path / "timings"
    for found in (b"\x00garbage", b"timing:", b"timing:9.9", bytes(range(256)) * 8):
        timing.write_bytes(found)
        assert build_encoder(small, timing=timing, force=True)["timing"] == ""
        assert timing.read_bytes() == b"timing:10.13.0.35"
    play("10.3.0", trt)
    assert build_encoder(small, timing=timing)["timing"] == ""


def test_a_timing_cache_that_others_can_write_is_not_read(trt: Trt, small: bundles.Bundle) -> None:
    build_encoder(small)
    Cache().timing().chmod(0o666)
    assert build_encoder(small, force=True)["timing"] == ""
    assert Cache().timing().stat().st_mode & 0o777 == 0o600
    assert build_encoder(small, force=True)["timing"] == "timing:10.13.0.35"


def test_what_cannot_fit_is_said_before_it_is_built(trt: Trt, small: bundles.Bundle) -> None:
    from host_device import HostDevice

    trt.setattr(HostDevice, "free_bytes", 20 * 2**20)
    with pytest.raises(InputError, match=r"1 frames of 640x480 need some 128 MiB, the device has 20 of 20 MiB free"):
        build_encoder(small)
    decoder = Key(build.identities(small, "decoder", "fp16", device())[0], profiles.decoder(small))
    with pytest.raises(InputError, match=r"the decoder needs some \d+ MiB, .* MiB free: close other programs"):
        build.build(small, decoder, device(), build.BuildOptions(), Cache())
    trt.setattr(HostDevice, "free_bytes", 2**30)
    with pytest.raises(InputError, match="--workspace 2048: the device has only 1024 MiB free"):
        build_encoder(small, workspace=2**31)


def test_the_workspace_is_a_quarter_of_what_is_free_or_what_is_needed(
    trt: Trt, small: bundles.Bundle, caplog: Log
) -> None:
    from host_device import HostDevice

    trt.setattr(HostDevice, "free_bytes", 2**30)
    assert build_encoder(small)["workspace"] == 2**28
    trt.setattr(HostDevice, "free_bytes", 200 * 2**20)
    needed = build.least_workspace(small, "encoder", "fp16", profiles.encoder(small))
    assert build_encoder(small, force=True)["workspace"] == needed > 50 * 2**20
    assert not caplog.records
    build_encoder(small, force=True, workspace=2**24)
    assert [r.message for r in caplog.records] == ["--workspace 16: the encoder needs some 128 MiB: the build may fail"]


def test_only_what_cannot_fit_is_refused(trt: Trt, small: bundles.Bundle, caplog: Log) -> None:
    """The estimate is half more than what is alive at once: between the two it is tried."""
    from host_device import HostDevice

    trt.setattr(HostDevice, "free_bytes", 100 * 2**20)
    assert build_encoder(small)["workspace"] == build.least_workspace(small, "encoder", "fp16", profiles.encoder(small))
    (output,) = [r.message for r in caplog.records]
    assert "need some 128 MiB, the device has 100 of 100 MiB free" in output
    assert f"diinn-build {small.path} --cameras N" in output
    assert "trying all the same" in output
    trt.setattr(HostDevice, "free_bytes", 80 * 2**20)
    with pytest.raises(InputError, match="need some 128 MiB"):
        build_encoder(small, force=True)


def test_signals_without_a_name(trt: Trt) -> None:
    text, short = failure.explained(-40, {"failed": "", "errors": [], "warnings": []}, "", 2**20)
    assert text.startswith("the build crashed (signal 40): ")
    assert not short
    trt.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -40, "", ""))
    assert build.no_builder().startswith("TensorRT crashes (signal 40): ")


def test_a_process_that_cannot_be_started_is_not_the_caches_fault(trt: Trt, small: bundles.Bundle) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    trt.setattr(subprocess, "Popen", none)
    with pytest.raises(build.BuildError, match="cannot start the build: Cannot allocate memory: close") as found:
        build_encoder(small)
    assert found.value.memory


def test_on_a_gpu_that_shares_the_memory_page_cache_counts_as_free(
    trt: Trt, small: bundles.Bundle, caplog: Log
) -> None:
    from host_device import HostDevice

    trt.setattr(HostDevice, "free_bytes", 20 * 2**20)  # as cuMemGetInfo says after a copy
    trt.setattr(cuda_driver, "integrated", lambda: True)
    trt.setattr(memory, "available", lambda: 2**31)
    assert build_encoder(small)["workspace"] == 2**29
    assert not caplog.records
    trt.setattr(memory, "available", lambda: 30 * 2**20)
    assert build_encoder(small, force=True)["workspace"] > 2**26  # what is needed: it may swap, or fail and say so
    assert any("has 30 of 20 MiB free: build" in r.message and "all the same" in r.message for r in caplog.records)


def test_an_integrated_gpu_is_told_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, started: int, integrated: int) -> None:
            self.started, self.integrated = started, integrated

        def cuInit(self, flags: int) -> int:
            return self.started

        def cuDeviceGet(self, device: Any, ordinal: int) -> int:
            return 0

        def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
            value._obj.value = self.integrated if attribute == 18 else -1
            return 0

    for started, integrated in ((0, 1), (0, 0), (100, 1)):
        monkeypatch.setattr(cuda_driver, "_library", lambda s=started, i=integrated: Library(s, i))
        assert cuda_driver.integrated() is (not started and integrated == 1)
        assert ("CUDA error 100" in cuda_driver.missing()) is bool(started)
    monkeypatch.undo()
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libnone.so.1")
    assert not cuda_driver.integrated()
    assert cuda_driver.missing() == "no NVIDIA driver here (libnone.so.1 does not load): install the driver"


SAID = "Error Code 2: OutOfMemory (Requested size was 67819976 bytes.)"


@pytest.mark.parametrize(
    ("errors", "warnings", "workspace", "advice"),
    [
        ([SAID], [], 64, "diinn-build BUNDLE --workspace N, above 64 MiB"),
        ([SAID], [], 640, "close other programs"),
        (
            ["no tactics to implement the operation within workspace limit."],
            [],
            1,
            "diinn-build BUNDLE --workspace N, above 1 MiB",
        ),
        (["Could not find any implementation for node {ForeignNode}."], [], 64, "try another --precision"),
        (
            ["Could not find any implementation for node {ForeignNode}."],
            ["Skipping tactic 3 due to insufficient memory on requested size of 2147483648 detected for tactic 0x0."],
            64,
            "close other programs, or build it with less, diinn-build BUNDLE with lower --cameras",
        ),
        (["Cuda Runtime (out of memory)"], ["timing cache: measured anew"], 64, "close other programs"),
        ([], ["Requested amount of GPU memory (9 bytes) could not be allocated."], 64, "close other programs"),
        (["something new"], ["something else"], 64, "run it with --log-level debug"),
    ],
)
def test_what_to_do_of_memory(errors: list[str], warnings: list[str], workspace: int, advice: str) -> None:
    report = {"failed": "TensorRT could not build the engine", "errors": errors, "warnings": warnings}
    text, short = failure.explained(1, report, "", workspace * 2**20)
    assert advice in text
    assert short is (", above " in text or "close other" in text)
    assert text.startswith("TensorRT could not build the engine: ")
    assert "\n" not in text


def test_what_strong_typing_fails_at_is_tried_once_with_flags(trt: Trt, small: bundles.Bundle, caplog: Log) -> None:
    trt.setenv("DIINN_DOUBLE_FAIL", "typed")
    with pytest.raises(DiinnError, match="could not build the engine: no kernel for a cast"):
        build_encoder(small)  # there is no other way in 10.13
    play("10.3.0", trt)
    engine = build_encoder(small)
    assert engine["network"] == []
    assert engine["flags"] == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    assert engine["held"]
    assert [r.message for r in caplog.records if "Trying once more with precision flags" in r.message]
    caplog.clear()
    assert build_encoder(small) == engine  # from the cache, though the better way is not there
    trt.setenv("DIINN_DOUBLE_FAIL", "")
    assert build_encoder(small, force=True)["network"] == ["STRONGLY_TYPED"]
    assert not caplog.records
    for failing, message in (("build", "out of memory"), ("kill", "was killed")):
        trt.setenv("DIINN_DOUBLE_FAIL", failing)
        with pytest.raises(DiinnError, match=message):
            build_encoder(small, force=True)
        assert not caplog.records  # another way would want no less memory


def start(failing: str) -> subprocess.Popen[str]:
    """A process that builds nano's encoder."""
    environment = os.environ | {"DIINN_DOUBLE_FAIL": failing}
    command = [sys.executable, "-c", BUILD, str(FAKES)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_three_processes_build_once(trt: Trt) -> None:
    processes = [start("slow") for _ in range(3)]
    output = [process.communicate(timeout=120) for process in processes]
    assert len({out for out, _ in output}) == 1
    assert float(output[0][0]) > 0
    assert sum("building in fp16" in err for _, err in output) == 1


def test_a_long_build_says_how_long(trt: Trt, small: bundles.Bundle, caplog: Log) -> None:
    trt.setenv("DIINN_DOUBLE_FAIL", "slow")
    caplog.set_level("INFO")
    build_encoder(small, interval=0.2)
    assert any("encoder: building for" in record.message for record in caplog.records)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_builds_may_be_ended_at_any_time(trt: Trt, small: bundles.Bundle, how: signal.Signals) -> None:
    process = start("hang")
    deadline = time.monotonic() + 60
    while not workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    process.communicate(timeout=30)
    assert process.returncode != 0
    while workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not workers()
    assert not [*Cache().path.glob("*.engine")]
    trt.setenv("DIINN_DOUBLE_FAIL", "")
    assert build_encoder(small)["version"] == "10.13.0.35"  # the lock went with its process
    assert not [*Cache().path.glob(".*.part")]


def workers() -> list[str]:
    """Processes that build into this test's cache."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text().split("\0")
            found += [word for word in words if word.startswith(str(Cache().path)) and word.endswith("job.json")]
    return found


def test_a_changed_engine_is_built_again(trt: Trt, small: bundles.Bundle, caplog: Log) -> None:
    caplog.set_level("INFO")
    cache, key = Cache(), key_of(small)
    data, _ = build.build(small, key, device(), build.BuildOptions(), cache)
    cache.engine(key).write_bytes(data + b"foreign code")
    again, metadata = build.build(small, key, device(), build.BuildOptions(), cache)
    assert b"foreign code" not in again
    assert metadata.sha256 == hashlib.sha256(again).hexdigest()
    assert any("has sha256" in record.message and "building it" in record.message for record in caplog.records)


def test_no_tensorrt_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError, match=r"TensorRT is not installed .* JetPack"):
        build.tensorrt()
