"""Engines' shapes, and the cache: what it keeps, what it refuses."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diinn.runtime import InputError
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.engines import profiles
from diinn.runtime.engines.cache import Cache, Identity, Key
from diinn.runtime.engines.verify import Row, Verdict
from diinn.runtime.util.private_files import FileRejected, read_own
from hypothesis import given
from hypothesis import strategies as st

VERDICT_OF = Verdict((Row((160, 120), (320, 240), 1, 0.01, 0.001),), 0.03, "the CPU", 1.0).plain()
ORIN = ("Orin", "8.7", 16)  # a name that modules of 4 to 16 multiprocessors share
KEY = Key(Identity("encoder", "a" * 64, "10.3.0", *ORIN, "fp16", "typed"), profiles.encoder(bundles.load("nano")))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def small() -> bundles.Bundle:
    return bundles.load("nano")


def test_profiles_cover_the_sizes_given_and_small_frames(small: bundles.Bundle) -> None:
    profile = profiles.encoder(small, [(320, 240), (640, 100)], cameras=4)
    assert profile.least["frame"] == (1, 5, 16, 16)
    assert profile.opt["frame"] == (4, 5, 240, 320)
    assert profile.most["frame"] == (4, 5, 240, 640)
    assert profile.holds("frame", (2, 5, 30, 36))
    assert not profile.holds("frame", (2, 5, 241, 36))


def test_a_decoder_is_for_chunks_of_one_size(small: bundles.Bundle) -> None:
    profile = profiles.decoder(small)
    assert profile.least == profile.opt == profile.most
    assert profile.opt["query"] == (profiles.chunk(small), 3)
    assert profiles.decoder(small, small=True).opt["query"] == (profiles.chunk(small) // 16, 3)
    assert set(profile.most) == {"query", *(m.name for m in small.maps)}


@given(channels=st.integers(1, 5000), samples=st.sampled_from([1, 4]))
def test_small_chunks_lie_at_addresses_that_tensorrt_takes(channels: int, samples: int) -> None:
    layout = SimpleNamespace(samples=samples, columns=("row", "col"))
    bundle: Any = SimpleNamespace(maps=[SimpleNamespace(name="map0", channels=channels)], layout=layout)
    queries = profiles.decoder(bundle, small=True).most["query"][0] // samples
    assert queries > 0
    assert queries % 256 == 0
    assert profiles.chunk(bundle) / 32 < queries <= profiles.chunk(bundle) / 16


@given(st.tuples(*[st.integers(1, 4096)] * 6))
def test_trtexec_shapes_are_read_back(numbers: tuple[int, ...]) -> None:
    low, high = sorted(numbers[:3]), sorted(numbers[3:])
    h, w = [min(a, b) for a, b in zip(low, high, strict=True)], [max(a, b) for a, b in zip(low, high, strict=True)]
    texts = [f"frame:1x5x{a}x{b}" for a, b in zip(sorted(h), sorted(w), strict=True)]
    profile = profiles.parse(bundles.load("nano"), *texts)
    assert [line.split("=", 1)[1] for line in profile.trtexec()] == texts
    assert profiles.from_plain(json.loads(json.dumps(profile.plain()))) == profile


@pytest.mark.parametrize("value", ["", "frame", "frame:1x5x0x9", "frame:1x3x9x9", "image:1x5x9x9", "frame:1x5x9x9x9"])
def test_bad_shapes(small: bundles.Bundle, value: str) -> None:
    with pytest.raises(InputError, match=r"frame:1x5x120x160|min <= opt <= max|no shapes"):
        profiles.parse(small, None, value, None)


def test_shapes_in_the_wrong_order(small: bundles.Bundle) -> None:
    with pytest.raises(InputError, match=r"min 1x5x64x64, opt 1x5x32x32, max 1x5x99x99 is not 0 < min <= opt <= max"):
        profiles.parse(small, "frame:1x5x64x64", "frame:1x5x32x32", "frame:1x5x99x99")


@pytest.mark.parametrize("value", ["", "160", "0x5", "160x120,", "9x-1", "160*120"])
def test_bad_frame_sizes(value: str) -> None:
    with pytest.raises(InputError, match="write it as WIDTHxHEIGHT"):
        profiles.sizes(value)


# The cache


def test_what_is_written_is_read(cache: Cache) -> None:
    cache.write(KEY, b"engine", 1.5)
    data, metadata = cache.read(KEY)
    assert (data, metadata.key, metadata.size, metadata.seconds) == (b"engine", KEY, 6, 1.5)
    assert [c.key for c in cache.find(KEY.identity)] == [KEY]
    kept = cache.write_verdict(metadata, json.loads(json.dumps(VERDICT_OF)))
    assert cache.read(KEY)[1] == kept
    assert kept.verify["passed"]
    cache.write(KEY, b"another", 1.5)
    cache.write_verdict(metadata, VERDICT_OF)  # that was of the one before
    assert cache.read(KEY)[1].verify == {}
    assert cache.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "name", ["onnx", "tensorrt", "device", "capability", "multiprocessors", "precision", "route", "role"]
)
def test_an_engine_for_something_else_is_not_found(cache: Cache, name: str) -> None:
    cache.write(KEY, b"engine", 1)
    values = {**vars(KEY.identity), name: {"role": "decoder", "multiprocessors": 8}.get(name, "other")}
    other = Key(Identity(**values), KEY.profile)
    assert cache.find(other.identity) == []
    with pytest.raises(FileRejected, match="there is no"):
        cache.read(other)
    # And not under a name it was moved to.
    cache.engine(KEY).rename(cache.engine(other))
    cache.metadata_path(KEY).rename(cache.metadata_path(other))
    with pytest.raises(FileRejected, match="was built for something else"):
        cache.read(other)


@pytest.mark.parametrize("how", ["changed", "cut", "no metadata", "no json", "another version", "writable", "foreign"])
def test_what_does_not_fit_is_rejected(cache: Cache, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(KEY, b"engine", 1)
    engine, metadata = cache.engine(KEY), cache.metadata_path(KEY)
    if how == "changed":
        engine.write_bytes(b"enginf")
    elif how == "cut":
        engine.write_bytes(b"eng")
    elif how == "no metadata":
        metadata.unlink()
    elif how == "no json":
        metadata.write_bytes(b"\xff{")
    elif how == "another version":
        metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"version": 99}))
    elif how == "writable":
        engine.chmod(0o666)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(FileRejected, match=r"sha256|metadata|damaged|version 99|chmod go-w|belongs to user"):
        cache.read(KEY)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.binary(max_size=4)), min_size=1, max_size=4))
def test_a_damaged_side_car_is_rejected_never_a_crash(edits: list[tuple[float, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        cache.write(KEY, b"engine", 1)
        text = bytearray(cache.metadata_path(KEY).read_bytes())
        for where, length, new in edits:
            place = int(where * len(text))
            text[place : place + length] = new
        cache.metadata_path(KEY).write_bytes(bytes(text))
        with contextlib.suppress(FileRejected):
            assert cache.read(KEY)[0] == b"engine"  # nothing that matters was hit
        cache.entries()


@pytest.mark.parametrize("change", [{"passed": "no"}, {"rows": True}, {"rows": [{}]}, {"rows": [1]}, {"tolerance": ""}])
def test_a_damaged_verdict_is_rejected(cache: Cache, change: dict[str, object]) -> None:
    cache.write(KEY, b"engine", 1)
    stored = json.loads(cache.metadata_path(KEY).read_text())
    cache.metadata_path(KEY).write_text(json.dumps(stored | {"verify": VERDICT_OF | change}))
    with pytest.raises(FileRejected, match="damaged"):
        cache.read(KEY)


def test_whoever_waits_for_a_lock_in_vain_leaves_the_other_ones_build(cache: Cache) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from diinn.runtime.bundles import bundle; from diinn.runtime.engines import profiles\n"
        "from diinn.runtime.engines.cache import Cache, Identity, Key\n"
        "identity = Identity('encoder', 'a' * 64, '10.3.0', 'Orin', '8.7', 16, 'fp16', 'typed')\n"
        "key = Key(identity, profiles.encoder(bundle.load('nano')))\n"
        "print('ready', flush=True)\n"
        "with Cache(Path(sys.argv[1])).lock(key): pass"
    )
    with cache.lock(KEY) as draft:
        (draft / "engine").write_bytes(b"half")
        command = [sys.executable, "-c", code, str(cache.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) != 0
        assert (draft / "engine").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_where_files_cannot_be_locked_it_goes_on_without(
    cache: Cache, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    metadata = cache.write(KEY, b"engine", 1)
    assert cache.write_verdict(metadata, VERDICT_OF).verify["passed"]
    assert cache.read(KEY)[1].verify["passed"]
    with cache.lock(KEY) as one, cache.lock(KEY) as other:  # two that build the same
        (one / "engine").write_bytes(b"half")
        assert not [*other.iterdir()]
        cache.remove()
        assert (one / "engine").exists()
        os.utime(one, (1, 1))  # of a build that was killed long ago
        cache.remove()
        assert not one.exists()
    assert [p.name for p in cache.path.iterdir()] == [f"{KEY.name}.lock"]


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
    with pytest.raises(FileRejected):
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


def test_a_link_or_a_foreign_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(FileRejected, match="link cannot be read"):
        read_own(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileRejected, match="pipe is no file"):
        read_own(tmp_path / "pipe")
    (tmp_path / "real").chmod(0o622)
    with pytest.raises(FileRejected, match="chmod go-w"):
        read_own(tmp_path / "real")


def test_what_a_killed_build_left_goes(cache: Cache) -> None:
    with cache.lock(KEY) as draft:
        (draft / "engine").write_bytes(b"half")
        cache.remove()
        assert (draft / "engine").exists()  # that build goes on
    assert not draft.exists()
    for remove in (lambda: cache.lock(KEY).__enter__(), cache.remove):
        draft.mkdir()
        (draft / "engine").write_bytes(b"half")
        (cache.path / ".abcd_123.part").write_bytes(b"half")
        remove()
        assert not (draft / "engine").exists()
    assert [p.name for p in cache.path.iterdir()] == [f"{KEY.name}.lock"]
