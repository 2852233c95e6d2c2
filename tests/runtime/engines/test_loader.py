"""The decoder engines: which one takes a chunk, and what happens where the one for small chunks is not to be had."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ramp
from diinn.runtime import InputError, SuperResolver
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.engines import build, profiles, verify
from diinn.runtime.engines import cache as cache_module
from diinn.runtime.engines.cache import Cache, Key

Trt = pytest.MonkeyPatch
Log = pytest.LogCaptureFixture
SMALL = 4096  # queries of a small chunk


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        ((64, 64), [SMALL]),
        ((64, 65), [SMALL, SMALL]),
        ((128, 128), [SMALL] * 4),
        ((128, 129), [16 * SMALL]),
        ((260, 256), [16 * SMALL, SMALL]),  # the last chunk is what is left
    ],
)
def test_small_chunks_have_an_engine_of_their_own(
    trt: Trt, bundle_path: Path, size: tuple[int, int], rows: list[int]
) -> None:
    frame, region, done = ramp(40, 50), (3.0, 2.0, 30.0, 31.0), []
    with SuperResolver.open(bundle_path, backend="onnxruntime", provider="cpu") as cpu:
        right = cpu.roi(frame, region, size, dtype=np.float32)
    with SuperResolver.open(bundle_path, backend="tensorrt", precision="fp32") as gpu:
        for opened in gpu.backend.decoder.opened:  # type: ignore[attr-defined]
            put = opened.engine.enqueue
            trt.setattr(
                opened.engine,
                "enqueue",
                lambda one=opened, put=put: (done.append(one.engine.shapes["query"][0]), put()),
            )
        found = gpu.roi(frame, region, size, dtype=np.float32)
    assert done == rows
    np.testing.assert_allclose(found, right, atol=2e-5)


def test_without_an_engine_for_small_chunks_they_are_decoded_as_full_ones(
    trt: Trt, bundle_path: Path, caplog: Log
) -> None:
    frame, before = ramp(20, 30), build._workspace
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        right = gpu.resize(frame, (50, 40))
    Cache().remove()

    def workspace(bundle: bundles.Bundle, key: Key, *rest: object) -> int:
        if key.profile.most.get("query", (0,))[0] == SMALL:
            raise build.TooLarge("the decoder needs more")
        return before(bundle, key, *rest)  # type: ignore[arg-type]

    trt.setattr(build, "_workspace", workspace)
    for _ in range(2):  # and at the second start it is not tried again
        with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
            np.testing.assert_array_equal(gpu.resize(frame, (50, 40)), right)
        assert len([*Cache().path.glob("decoder-*.engine")]) == 1
    messages = [r.message for r in caplog.records]
    assert messages.count("small chunks are decoded as full ones: the decoder needs more") == 1


def test_a_decoder_of_the_users_for_few_queries_is_used(trt: Trt, bundle_path: Path) -> None:
    bundle, frame = bundles.load(bundle_path), ramp(40, 50)
    with SuperResolver.open(bundle_path, backend="onnxruntime", provider="cpu") as cpu:
        right = cpu.resize(frame, (90, 91), dtype=np.float32)
    with SuperResolver.open(bundle_path, backend="tensorrt", precision="fp32") as gpu:
        device = gpu.backend.device  # type: ignore[attr-defined]
        identity = build.identities(bundle, "decoder", "fp32", device)[0]
        sides = ({n: (rows, c) for n, (_, c) in profiles.decoder(bundle).most.items()} for rows in (1, 2000, 2000))
        Cache().remove()
        build.build(bundle, Key(identity, profiles.Profile(*sides)), device, build.BuildOptions(), Cache())
    with SuperResolver.open(bundle_path, backend="tensorrt", precision="fp32") as gpu:
        assert gpu.backend.chunk == 2000
        np.testing.assert_allclose(gpu.resize(frame, (90, 91), dtype=np.float32), right, atol=2e-5)


def test_chunks_that_are_no_multiple_of_small_ones(trt: Trt, bundle_path: Path) -> None:
    bundle, frame = bundles.load(bundle_path), ramp(40, 50)
    trt.setattr(profiles, "_CHUNK_VALUES", 5000 * sum(m.channels for m in bundle.maps))
    sizes = [(33, 31), (70, 71), (90, 91)]
    with SuperResolver.open(bundle_path, backend="onnxruntime", provider="cpu") as cpu:
        right = [cpu.resize(frame, size, dtype=np.float32) for size in sizes]
    with SuperResolver.open(bundle_path, backend="tensorrt", precision="fp32") as gpu:
        backend: Any = gpu.backend
        assert (backend.chunk, backend.decoder.room) == (5000, 20 * 256)
        for alone in (None, *backend.decoder.opened):
            with backend.decoder.only(alone):
                for size, wanted in zip(sizes, right, strict=True):
                    np.testing.assert_allclose(gpu.resize(frame, size, dtype=np.float32), wanted, atol=2e-5)


def test_all_engines_run_where_they_are_compared(trt: Trt, bundle_path: Path) -> None:
    import tensorrt as double

    rows, run = [], double.Context._run
    trt.setattr(
        double.Context,
        "_run",
        lambda self, shapes, addresses: (rows.append(shapes.get("query", (0,))[0]), run(self, shapes, addresses))[1],
    )
    with SuperResolver.open(bundle_path, backend="tensorrt", chunk=500, cuda_graphs=True) as gpu:
        assert rows.count(16 * SMALL) > verify.SIZES
        assert rows.count(SMALL) > verify.SIZES
        rows.clear()
        gpu.resize(ramp(24, 32), (64, 48))
        assert {*rows} == {0, SMALL}


def test_decoders_of_other_types_are_not_mixed(trt: Trt, bundle_path: Path, caplog: Log) -> None:
    import tensorrt as double

    original = double.Engine.__init__

    def other(self: Any, *args: Any) -> None:
        original(self, *args)
        if self.header["shapes"].get("query", [[0]])[0][0] == SMALL:
            self.types["map0"] = double.DataType.FLOAT

    trt.setattr(double.Engine, "__init__", other)
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        assert gpu.backend.decoder.small is None  # type: ignore[attr-defined]
    assert any("are of other types than those of the decoder" in r.message for r in caplog.records)


def test_a_decoder_whose_tensors_differ_in_rows_is_refused(bundle_path: Path) -> None:
    bundle = bundles.load(bundle_path)
    full = profiles.decoder(bundle)
    odd = profiles.Profile(full.least, full.opt, {**full.most, "map1": (2**17, full.most["map1"][1])})
    with pytest.raises(InputError, match=r"map1 131072x16.*: all need the same rows, 1 a query"):
        profiles.queries(bundle, odd)


@pytest.mark.parametrize("known", [False, True])
def test_an_engine_for_small_chunks_that_is_wrong_is_left_out(
    trt: Trt, bundle_path: Path, caplog: Log, known: bool
) -> None:
    import tensorrt as double

    def wrong(self: Any, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        run(self, shapes, addresses)
        if shapes.get("query", (0,))[0] == SMALL:
            self._host("rgb", (SMALL, 3), addresses)[...] += 0.5

    run, frame = double.Context._run, ramp(20, 30)
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        right = gpu.resize(frame, (50, 40))
        if known:
            small = gpu.backend.metadata[2]  # type: ignore[attr-defined]
            verdict = verify.Verdict((verify.Row((3, 3), (6, 6), 1, 0.5, 0.2),), 0.01, "another", 1.0)
            Cache().write_verdict(small, verdict.plain())
        else:
            Cache().remove()
    trt.setattr(double.Context, "_run", wrong)
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        np.testing.assert_array_equal(gpu.resize(frame, (50, 40)), right)
        assert all(metadata.verify["passed"] for metadata in gpu.backend.metadata)  # type: ignore[attr-defined]
    messages = [r.message for r in caplog.records if "small chunks are decoded as full ones" in r.message]
    assert len(messages) == 1
    assert "engine differs from the CPU" in messages[0]


def test_a_cache_to_read_that_has_no_engine_for_small_chunks(trt: Trt, bundle_path: Path, caplog: Log) -> None:
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        right, small = gpu.resize(ramp(20, 30), (50, 40)), gpu.backend.metadata[2]  # type: ignore[attr-defined]
    Cache().engine(small.key).unlink()
    trt.setattr(cache_module, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        assert gpu.backend.decoder.small is None  # type: ignore[attr-defined]
        np.testing.assert_array_equal(gpu.resize(ramp(20, 30), (50, 40)), right)
    assert not caplog.records
