"""Engines: profiles, the cache and what it refuses, builds and how they fail; ``tests/double`` plays TensorRT."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import onnx
import pytest
from conftest import DOUBLE, play
from diinn.export import half
from diinn.runtime import DiinnError, InputError
from diinn.runtime import bundle as bundles
from diinn.runtime.engines import build, profiles, versions
from diinn.runtime.engines.cache import VERDICT, Cache, Identity, Key, Rejected
from hypothesis import given
from hypothesis import strategies as st

Trt, Log = pytest.MonkeyPatch, pytest.LogCaptureFixture
KEY = Key(Identity("encoder", "a" * 64, "10.3.0", "Orin", "8.7", "fp16"), profiles.encoder())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


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
    return Key(build.identity(bundle, "encoder", precision, device()), profiles.encoder())


# Profiles


def test_profiles_cover_the_sizes_given_and_small_frames() -> None:
    profile = profiles.encoder([(320, 240), (640, 100)], cameras=4)
    assert profile.least["frame"] == (1, 3, 16, 16)
    assert profile.opt["frame"] == (4, 3, 240, 320)
    assert profile.most["frame"] == (4, 3, 240, 640)
    assert profile.holds("frame", (2, 3, 30, 36))
    assert not profile.holds("frame", (2, 3, 241, 36))


def test_a_decoder_is_tuned_to_full_chunks(small: bundles.Bundle) -> None:
    profile = profiles.decoder(small)
    assert profile.opt == profile.most
    assert profile.opt["query"] == (profiles.chunk(small), 3)
    assert set(profile.most) == {"query", *(m.name for m in small.maps)}


@given(st.tuples(*[st.integers(1, 4096)] * 6))
def test_trtexec_shapes_are_read_back(numbers: tuple[int, ...]) -> None:
    low, high = sorted(numbers[:3]), sorted(numbers[3:])
    h, w = [min(a, b) for a, b in zip(low, high, strict=True)], [max(a, b) for a, b in zip(low, high, strict=True)]
    texts = [f"frame:1x3x{a}x{b}" for a, b in zip(sorted(h), sorted(w), strict=True)]
    profile = profiles.parse(*texts)
    assert [line.split("=", 1)[1] for line in profile.trtexec()] == texts
    assert profiles.from_plain(json.loads(json.dumps(profile.plain()))) == profile


@pytest.mark.parametrize("value", ["", "frame", "frame:1x3x0x9", "frame:1x4x9x9", "image:1x3x9x9", "frame:1x3x9x9x9"])
def test_bad_shapes(value: str) -> None:
    with pytest.raises(InputError, match=r"frame:1x3x120x160|min <= opt <= max|no shapes"):
        profiles.parse(None, value, None)


def test_shapes_in_the_wrong_order() -> None:
    with pytest.raises(InputError, match=r"min 1x3x64x64, opt 1x3x32x32, max 1x3x99x99 is not 0 < min <= opt <= max"):
        profiles.parse("frame:1x3x64x64", "frame:1x3x32x32", "frame:1x3x99x99")


@pytest.mark.parametrize("value", ["", "160", "0x5", "160x120,", "9x-1", "160*120"])
def test_bad_frame_sizes(value: str) -> None:
    with pytest.raises(InputError, match="write it as WIDTHxHEIGHT"):
        profiles.sizes(value)


# The cache


def test_what_is_written_is_read(cache: Cache) -> None:
    cache.write(KEY, b"engine", 1.5)
    data, car = cache.read(KEY)
    assert (data, car.key, car.size, car.seconds) == (b"engine", KEY, 6, 1.5)
    assert [c.key for c in cache.find(KEY.identity)] == [KEY]
    told = cache.write_verdict(car, dict.fromkeys(VERDICT, True))
    assert cache.read(KEY)[1] == told
    assert cache.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["onnx", "tensorrt", "device", "capability", "precision", "role"])
def test_an_engine_for_something_else_is_not_found(cache: Cache, name: str) -> None:
    cache.write(KEY, b"engine", 1)
    values = {**vars(KEY.identity), name: "decoder" if name == "role" else "other"}
    other = Key(Identity(**values), KEY.profile)
    assert cache.find(other.identity) == []
    with pytest.raises(Rejected, match="there is no"):
        cache.read(other)
    # And not under a name it was moved to.
    cache.engine(KEY).rename(cache.engine(other))
    cache.side_car(KEY).rename(cache.side_car(other))
    with pytest.raises(Rejected, match="was built for something else"):
        cache.read(other)


@pytest.mark.parametrize("how", ["changed", "cut", "no side-car", "no json", "another version", "writable", "foreign"])
def test_what_does_not_fit_is_rejected(cache: Cache, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(KEY, b"engine", 1)
    engine, car = cache.engine(KEY), cache.side_car(KEY)
    if how == "changed":
        engine.write_bytes(b"enginf")
    elif how == "cut":
        engine.write_bytes(b"eng")
    elif how == "no side-car":
        car.unlink()
    elif how == "no json":
        car.write_bytes(b"\xff{")
    elif how == "another version":
        car.write_text(json.dumps(json.loads(car.read_text()) | {"version": 99}))
    elif how == "writable":
        engine.chmod(0o666)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(Rejected, match=r"sha256|side-car|damaged|version 99|chmod go-w|belongs to user"):
        cache.read(KEY)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.binary(max_size=4)), min_size=1, max_size=4))
def test_a_damaged_side_car_is_rejected_never_a_crash(edits: list[tuple[float, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        cache.write(KEY, b"engine", 1)
        text = bytearray(cache.side_car(KEY).read_bytes())
        for where, length, new in edits:
            place = int(where * len(text))
            text[place : place + length] = new
        cache.side_car(KEY).write_bytes(bytes(text))
        with contextlib.suppress(Rejected):
            assert cache.read(KEY)[0] == b"engine"  # nothing that matters was hit
        cache.entries()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set DIINN_CACHE to a folder of your own"):
        Cache(tmp_path / "file" / "cache").write(KEY, b"x", 1)


def test_a_full_disk_leaves_nothing_that_is_loaded_later(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(KEY, b"old", 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        cache.write(KEY, b"new", 1)
    with pytest.raises(Rejected):
        cache.read(KEY)
    assert not [p for p in cache.path.iterdir() if p.suffix == ".part"]


def test_removing_leaves_an_empty_folder(cache: Cache) -> None:
    cache.write(KEY, b"engine", 1)
    cache.timing().write_bytes(b"t")
    with cache.lock(KEY):
        pass
    for name in ("package.json", "poetry.lock", "other.engine"):  # not ours
        (cache.path / name).write_text("{}")
    assert cache.remove() > 6
    left = {p.name for p in cache.path.iterdir() if p.name != f"{KEY.name}.lock"}  # a lock may be held
    assert left == {"package.json", "poetry.lock", "other.engine"}


# Versions


@pytest.mark.parametrize(
    ("version", "flags", "constrained"),
    [("8.5.2.2", "EXPLICIT_BATCH", True), ("8.6.1", "EXPLICIT_BATCH", True), ("10.3.0", "STRONGLY_TYPED", False),
     ("11.4.0.106", "STRONGLY_TYPED", False)],
)  # fmt: skip
def test_rules_by_version(version: str, flags: str, constrained: bool) -> None:
    rules = versions.rules(version)
    assert rules.network_flags == (flags,)
    assert rules.constrained is constrained


@pytest.mark.parametrize("version", ["7.1.3", "8.4.1", "", "unknown"])
def test_versions_that_are_too_old(version: str) -> None:
    with pytest.raises(InputError, match=r"is not supported: install one of 8\.5"):
        versions.rules(version)


# Builds


@pytest.mark.parametrize("version", ["8.5.2.2", "8.6.1", "10.3.0", "10.16.1.11", "11.4.0.106"])
def test_what_each_version_is_told(trt: Trt, small: bundles.Bundle, version: str) -> None:
    play(version, trt)
    said = build_encoder(small)
    eight = version.startswith("8")
    assert said["version"] == version
    assert said["network"] == (["EXPLICIT_BATCH"] if eight else ["STRONGLY_TYPED"])
    assert said["flags"] == (["FP16", "OBEY_PRECISION_CONSTRAINTS"] if eight else [])  # and TF32 cleared
    assert said["shapes"]["frame"] == [[1, 3, 16, 16], [1, 3, 120, 160], [1, 3, 480, 640]]  # type: ignore[index]
    assert said["workspace"] == 2**30  # a quarter of what the double says is free
    assert bool(said["held"]) is eight
    assert said["held"] == said["outputs"]


def test_sines_are_held_in_fp32_on_8(trt: Trt, small: bundles.Bundle) -> None:
    play("8.6.1", trt)
    identity = build.identity(small, "decoder", "fp16", device())
    key = Key(identity, profiles.decoder(small))
    data, _ = build.build(small, key, device(), build.BuildOptions(), Cache())
    held = {*json.loads(data.split(b"\n")[1])["held"]}
    graph = small.graph("decoder", "fp16")
    sines = {node.name for node in onnx.load(graph).graph.node if node.op_type == "Sin"}
    assert sines <= held
    assert {*half.kept_full(graph)} <= held


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
        ("shape", "refuses the shapes of frame up to 1x3x480x640"),
        ("profile", "refuses the profile --minShapes"),
        ("build", r"could not build the engine: Cuda Runtime \(out of memory\): lower --workspace"),
        ("kill", "the build was killed, most likely for memory: lower --workspace"),
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
    assert not [*Cache().path.glob(".build*")]


def test_a_timing_cache_of_another_version_is_left_out(trt: Trt, small: bundles.Bundle, tmp_path: Path) -> None:
    timing = tmp_path / "timings"
    timing.write_bytes(b"\x00garbage")
    assert build_encoder(small, timing=timing)["timing"] == ""
    assert timing.read_bytes() == b"timing:10.13.0.35"
    play("10.3.0", trt)
    assert build_encoder(small, timing=timing)["timing"] == ""


def test_what_cannot_fit_is_said_before_it_is_built(trt: Trt, small: bundles.Bundle) -> None:
    from host_device import HostDevice

    trt.setattr(HostDevice, "free_bytes", 20 * 2**20)
    with pytest.raises(InputError, match=r"1 frames of 640x480 need some \d+ MiB, the device has 20 of 20 MiB free"):
        build_encoder(small)
    trt.setattr(HostDevice, "free_bytes", 2**30)
    with pytest.raises(InputError, match="--workspace 2048: the device has only 1024 MiB free"):
        build_encoder(small, workspace=2**31)


def test_two_processes_build_once(trt: Trt, small: bundles.Bundle) -> None:
    trt.setenv("DIINN_DOUBLE_FAIL", "slow")
    found: list[float] = []
    key = key_of(small)

    def one() -> None:
        found.append(build.build(small, key, device(), build.BuildOptions(), Cache())[1].built)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1


def test_a_long_build_says_how_long(trt: Trt, small: bundles.Bundle, caplog: Log) -> None:
    trt.setenv("DIINN_DOUBLE_FAIL", "slow")
    caplog.set_level("INFO")
    build_encoder(small, interval=0.2)
    assert any("encoder: building for" in record.message for record in caplog.records)


def test_ctrl_c_ends_the_build_and_leaves_nothing(trt: Trt, small: bundles.Bundle, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from diinn.runtime import bundle; from diinn.runtime.engines import build, profiles\n"
        "from diinn.runtime.engines.cache import Cache, Key\n"
        "from host_device import HostDevice\n"
        "b = bundle.load('nano'); d = HostDevice()\n"
        "key = Key(build.identity(b, 'encoder', 'fp16', d), profiles.encoder())\n"
        "build.build(b, key, d, build.BuildOptions(), Cache())"
    )
    environment = os.environ | {"DIINN_DOUBLE_FAIL": "hang"}
    process = subprocess.Popen([sys.executable, "-c", code, str(DOUBLE)], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not [*Cache().path.glob(".build*/job.json")] and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    assert not [*Cache().path.glob(".build*")]
    assert not [*Cache().path.glob("*.engine")]
    trt.setenv("DIINN_DOUBLE_FAIL", "")
    assert build_encoder(small)["version"] == "10.13.0.35"  # the lock went with its process


def test_a_changed_engine_is_built_again(trt: Trt, small: bundles.Bundle, caplog: Log) -> None:
    caplog.set_level("INFO")
    cache, key = Cache(), key_of(small)
    data, _ = build.build(small, key, device(), build.BuildOptions(), cache)
    cache.engine(key).write_bytes(data + b"foreign code")
    again, car = build.build(small, key, device(), build.BuildOptions(), cache)
    assert b"foreign code" not in again
    assert car.sha256 == hashlib.sha256(again).hexdigest()
    assert any("has sha256" in record.message and "building it" in record.message for record in caplog.records)


def test_no_tensorrt_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError, match=r"TensorRT is not installed .* JetPack"):
        build.tensorrt()
