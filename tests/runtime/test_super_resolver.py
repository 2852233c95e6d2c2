"""Views of frames against the model in PyTorch, and against each other."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ramp
from diinn.runtime import DiinnError, InputError, SuperResolver, View
from diinn.runtime.backends.bands import bands
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.cpu import compiler
from diinn.runtime.super_resolver import Encoded, encoded_at
from diinn.runtime.util.once import Once


@pytest.fixture(scope="module")
def resolver(bundle_path: Path):
    with SuperResolver.open(bundle_path) as opened:
        yield opened


def torch_resize(checkpoint_path: Path, frame: np.ndarray, dsize: tuple[int, int]) -> np.ndarray:
    import torch
    from diinn.train import checkpoint, protocol

    model = checkpoint.load(checkpoint_path).model
    rgb = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1)
    return protocol.super_resolve(model, rgb, dsize[::-1]).permute(1, 2, 0).numpy()[..., ::-1]


@pytest.mark.parametrize("dsize", [(40, 30), (41, 53), (80, 60), (127, 95), (200, 31)])
def test_resize_is_the_model(resolver: SuperResolver, checkpoint_path: Path, dsize: tuple[int, int]) -> None:
    frame = ramp(30, 40)
    got = resolver.resize(frame, dsize, dtype=np.float32)
    assert got.shape == (dsize[1], dsize[0], 3)
    np.testing.assert_allclose(got, torch_resize(checkpoint_path, frame, dsize), atol=1e-5)


def test_uint8_is_float_rounded_and_clamped(resolver: SuperResolver, photo: np.ndarray) -> None:
    exact = resolver.resize(photo, (160, 120), dtype=np.float32)
    np.testing.assert_array_equal(resolver.resize(photo, (160, 120)), np.clip(np.rint(exact * 255), 0, 255))


def test_roi_of_the_full_frame_is_resize(resolver: SuperResolver, photo: np.ndarray) -> None:
    whole = resolver.resize(photo, (123, 77), dtype=np.float32)
    np.testing.assert_array_equal(resolver.roi(photo, (0, 0, 80, 60), (123, 77), dtype=np.float32), whole)


def test_roi_is_a_crop_of_resize(resolver: SuperResolver, photo: np.ndarray) -> None:
    whole = resolver.resize(photo, (240, 180), dtype=np.float32)
    part = resolver.roi(photo, (10, 20, 30, 25), (90, 75), dtype=np.float32)
    np.testing.assert_allclose(part, whole[60:135, 30:120], atol=1e-6)


def test_remap_with_the_resize_map_is_resize(resolver: SuperResolver, photo: np.ndarray) -> None:
    x = (np.arange(163) + 0.5) * 80 / 163 - 0.5
    y = (np.arange(127) + 0.5) * 60 / 127 - 0.5
    map_x, map_y = (m.astype(np.float32) for m in np.meshgrid(x, y))
    got = resolver.remap(photo, map_x, map_y, dtype=np.float32)
    np.testing.assert_allclose(got, resolver.resize(photo, (163, 127), dtype=np.float32), atol=1e-3)


def test_remap_border(resolver: SuperResolver, photo: np.ndarray) -> None:
    map_x, map_y = (m.astype(np.float32) for m in np.meshgrid(np.arange(-5, 20, 0.5), np.arange(5, 15, 0.5)))
    out = resolver.remap(photo, map_x, map_y, border_value=1.0)
    assert (out[:, :9] == 255).all()
    assert (out[:, 10:] != 255).any()
    replicated = resolver.remap(photo, map_x, map_y, border="replicate")
    assert (replicated[:, 0] == replicated[:, 5]).all()


@pytest.mark.parametrize("chunk", [1, 17, 1000, 10**6])
def test_chunk_size_never_changes_a_pixel(bundle_path: Path, photo: np.ndarray, chunk: int) -> None:
    views = [View.resize((97, 71)), View.roi((3.3, 4, 20, 20.5), (31, 32))]
    with SuperResolver.open(bundle_path) as usual, SuperResolver.open(bundle_path, chunk=chunk, check=False) as other:
        for a, b in zip(
            usual.decode(usual.encode([photo])[0], views), other.decode(other.encode([photo])[0], views), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_never_change_a_pixel(
    bundle_path: Path, resolver: SuperResolver, photo: np.ndarray, threads: int
) -> None:
    with SuperResolver.open(bundle_path, threads=threads) as other:
        np.testing.assert_array_equal(other.resize(photo, (301, 299)), resolver.resize(photo, (301, 299)))


def test_frames_of_a_batch_do_not_mix(resolver: SuperResolver) -> None:
    frames = [ramp(20, 24), ramp(22, 24), 1 - ramp(20, 24)]
    encoded = resolver.encode(frames)
    for frame, each in zip(frames, encoded, strict=True):
        together = resolver.decode(each, [View.resize((50, 44))], dtype=np.float32)[0]
        np.testing.assert_allclose(together, resolver.resize(frame, (50, 44), dtype=np.float32), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_bands_equal_the_whole_frame(bundle_path: Path, resolver: SuperResolver, dtype: type) -> None:
    frame = ramp(90, 30)
    x, y = (m.astype(np.float32) for m in np.meshgrid(np.linspace(-2, 31, 90), np.linspace(89, -1, 200)))
    views = [
        View.resize((77, 231)),
        View.roi((2.5, 30.25, 20, 41), (60, 130)),
        View.remap(x, y),
        View.resize((15, 180)),
    ]
    budget = 30 * 22 * resolver.bundle.workspace
    with SuperResolver.open(bundle_path, memory_budget=budget) as banded:
        encoded = banded.encode([frame])[0]
        assert encoded.maps is None
        whole = resolver.decode(resolver.encode([frame])[0], views, dtype=dtype)
        for a, b in zip(banded.decode(encoded, views, dtype=dtype), whole, strict=True):
            np.testing.assert_allclose(
                a.astype(np.float64), b.astype(np.float64), atol=1e-5 if dtype == np.float32 else 1
            )


def test_a_budget_below_one_band_still_works(bundle_path: Path, resolver: SuperResolver, photo: np.ndarray) -> None:
    with SuperResolver.open(bundle_path, memory_budget=1) as tight:
        got = tight.resize(photo, (100, 90), dtype=np.float32)
    np.testing.assert_allclose(got, resolver.resize(photo, (100, 90), dtype=np.float32), atol=1e-5)


def test_a_band_is_never_mostly_halo(bundle_path: Path) -> None:
    wide = dataclasses.replace(bundles.load(bundle_path), radius=132, workspace=8448)
    assert bands((640, 480), wide, 512 * 2**20) == [(0, 240, 0, 372), (240, 480, 108, 480)]
    assert len(bands((320, 240), wide, 512 * 2**20)) == 1


def test_a_frame_that_bands_cannot_help_is_encoded_whole(
    bundle_path: Path, photo: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    with SuperResolver.open(bundle_path, memory_budget=1) as tight:
        assert tight.encode([photo[:9]])[0].maps is not None
    assert any("1 band of up to" in r.message for r in caplog.records)


def test_a_closed_resolver_says_so(bundle_path: Path, photo: np.ndarray) -> None:
    resolver = SuperResolver.open(bundle_path)
    resolver.close()
    with pytest.raises(InputError, match="is closed"):
        resolver.resize(photo, (160, 120))


@pytest.mark.parametrize("decoder", ["fused", "onnx"])
def test_a_failing_worker_ends_the_others(
    bundle_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    if decoder == "fused" and not compiler.find_compiler():
        pytest.skip("no C++ compiler here: apt-get install g++")
    with SuperResolver.open(bundle_path, chunk=100, decoder=decoder) as resolver:
        calls = []

        def fail(*_: object) -> None:
            calls.append(1)
            raise DiinnError("no more")

        if decoder == "fused":
            monkeypatch.setattr(resolver.backend._fused, "decode", fail)  # type: ignore[attr-defined]
        else:
            monkeypatch.setattr(resolver.backend, "run_chunk", fail)
        with pytest.raises(DiinnError, match="no more"):
            resolver.resize(photo, (320, 240))
        assert len(calls) <= resolver.backend.workers


def test_shrinking_is_area_and_said_once(
    resolver: SuperResolver, photo: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    resolver._logged = Once()
    for _ in range(2):
        np.testing.assert_array_equal(
            resolver.resize(photo, (40, 30)), cv2.resize(photo, (40, 30), interpolation=cv2.INTER_AREA)
        )
    assert sum("INTER_AREA" in r.message for r in caplog.records) == 1
    mixed = resolver.resize(photo, (40, 120), dtype=np.float32)
    tall = resolver.resize(photo, (80, 120), dtype=np.float32)
    np.testing.assert_allclose(mixed, cv2.resize(tall, (40, 120), interpolation=cv2.INTER_AREA), atol=1e-6)


def test_a_scale_beyond_training_warns_once(
    bundle_path: Path, photo: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    with SuperResolver.open(bundle_path) as fresh:
        for _ in range(2):
            fresh.resize(photo, (400, 300))
    assert sum("beyond what tiny was trained for" in r.message for r in caplog.records) == 1
    height, width = photo.shape[:2]
    ys, xs = np.mgrid[: height // 2, : width // 2].astype(np.float32) * 2
    with SuperResolver.open(bundle_path) as fresh:
        fresh.remap(photo, xs, ys)
    assert sum("below what tiny was trained for" in r.message for r in caplog.records) == 1


def test_grey_and_strided_frames(resolver: SuperResolver, photo: np.ndarray) -> None:
    grey = photo[..., 0]
    wanted = resolver.resize(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), (100, 80))
    np.testing.assert_array_equal(resolver.resize(grey, (100, 80)), wanted)
    np.testing.assert_array_equal(resolver.resize(grey[..., None], (100, 80)), wanted)
    flipped = photo[::-1, ::2]
    np.testing.assert_array_equal(resolver.resize(flipped, (90, 80)), resolver.resize(flipped.copy(), (90, 80)))


def test_a_one_pixel_frame(resolver: SuperResolver) -> None:
    assert resolver.resize(np.full((1, 1, 3), 128, np.uint8), (4, 3)).shape == (3, 4, 3)


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (np.zeros((4, 4, 4), np.uint8), "alpha"),
        (np.zeros((4, 4, 2), np.uint8), "height, width, 3"),
        (np.zeros((0, 4, 3), np.uint8), "height, width, 3"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        (np.zeros((4, 4, 3), np.float64), "float64"),
        ([[1]], "numpy array"),
    ],
)
def test_frames_that_cannot_be_used(resolver: SuperResolver, frame: object, word: str) -> None:
    with pytest.raises(InputError, match=word):
        resolver.resize(frame, (8, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize("dsize", [(0, 5), (5, -1), (2.5, 5), "640x480", (5,), (10**7, 5), (float("inf"), 5)])
def test_sizes_that_cannot_be_used(resolver: SuperResolver, photo: np.ndarray, dsize: object) -> None:
    with pytest.raises(InputError, match="size"):
        resolver.resize(photo, dsize)  # type: ignore[arg-type]


def test_an_output_that_cannot_fit_is_refused_with_its_size(resolver: SuperResolver, photo: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"needs 2794\.0 GiB"):
        resolver.resize(photo, (10**6, 10**6))


def test_other_arguments_that_cannot_be_used(bundle_path: Path, resolver: SuperResolver, photo: np.ndarray) -> None:
    with pytest.raises(InputError, match="dtype float64"):
        resolver.resize(photo, (90, 90), dtype=np.float64)
    with pytest.raises(InputError, match="border 'wrap'"):
        resolver.remap(photo, np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32), border="wrap")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown backend 'onnx'"):
        SuperResolver.open(bundle_path, backend="onnx")
    with pytest.raises(InputError, match="unknown provider 'tpu'"):
        SuperResolver.open(bundle_path, provider="tpu")
    for rect in ((0, 0, float("nan"), 5), (0, 0, 1e200, 1e200), (0, 0, 5), "abcd"):
        with pytest.raises(InputError, match="ROI"):
            resolver.roi(photo, rect, (50, 50))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threads = 0"):
        SuperResolver.open(bundle_path, threads=0)


def test_several_frames_with_views_of_their_own_decode_as_one_by_one(bundle_path: Path) -> None:
    frames = [ramp(20, 30), ramp(20, 30)[::-1].copy(), ramp(16, 17)]
    views = [
        [View.resize((50, 40)), View.roi((2, 3, 8, 9), (20, 21))],
        [],
        [View.resize((17, 16)), View.resize((9, 8))],
    ]
    with SuperResolver.open(bundle_path, backend="onnxruntime") as sr:
        encoded = sr.encode(frames)
        together = sr.decode_all(list(zip(encoded, views, strict=True)))
        apart = [sr.decode(e, v) for e, v in zip(encoded, views, strict=True)]
        assert [len(row) for row in together] == [2, 0, 2]
        for one, other in zip(together, apart, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["roi", "remap", "smaller", "bands"])
def test_in_steps_it_is_the_same_picture(bundle_path: Path, photo: np.ndarray, name: str) -> None:
    frame = np.ascontiguousarray(photo[:24, :32])
    y, x = np.mgrid[0:40, 0:50].astype(np.float32) / 2
    view = {
        "roi": View.roi((3, 4, 20, 15), (60, 45)),
        "remap": View.remap(x, y),
        "smaller": View.resize((16, 12)),
        "bands": View.resize((64, 48)),
    }[name]
    budget = 1 if name == "bands" else 2**29
    with SuperResolver.open(bundle_path, chunk=100, threads=2, memory_budget=budget) as resolver:
        encoded = resolver.encode([frame])[0]
        *steps, image = resolver.decode_in_steps(encoded, view)
        assert steps == [None] * {"roi": 13, "remap": 9, "smaller": 0, "bands": 0}[name]
        np.testing.assert_array_equal(image, resolver.decode(encoded, [view])[0])


def test_several_batches_are_encoded_when_the_last_one_is() -> None:
    maps = [SimpleNamespace(ready_at=2.0), SimpleNamespace(ready_at=3.0), SimpleNamespace()]
    encoded = [Encoded(ramp(3, 3), one) for one in maps]
    assert [encoded_at(returned, encoded) for returned in (1.0, 4.0)] == [3.0, 4.0]
    assert encoded_at(1.0, []) == 1.0
