"""The dial: a frame's strength, given by the caller or estimated."""

import json
import logging
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ramp
from diinn.runtime import InputError, Strength, SuperResolver, View
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.noise.estimator import LOOK_SECONDS, Estimator, Smoothed
from diinn.runtime.noise.sensor_noise import sensor_noise
from diinn.runtime.noise.strength import AUTO, MOST_PATCHES, NONE, PATCH, Dial, parse_denoise, patches
from diinn.runtime.sources import demo
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def resolver(bundle_path: Path):  # type: ignore[no-untyped-def]
    with SuperResolver.open(bundle_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def dialless(dialless_path: Path):  # type: ignore[no-untyped-def]
    with SuperResolver.open(dialless_path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("auto", AUTO),
        (" auto ", AUTO),
        (0, NONE),
        ("0", NONE),
        (5, Strength(5)),
        ("4.5", Strength(4.5)),
        (np.float32(2), Strength(2)),
        ("6,30", Strength(6, 30)),
        ("0,25", Strength(0, 25)),
        (Strength(1, 2), Strength(1, 2)),
    ],
)
def test_what_is_understood(value: object, wanted: object) -> None:
    assert parse_denoise(value) == wanted


@pytest.mark.parametrize(
    "value",
    [
        *("", "strong", "1,2,3", "5%", "-1", "nan", "inf", "1,-2", "auto,3"),
        -1,
        math.nan,
        math.inf,
        True,
        None,
        {},
        [1, 2],
    ],
)
def test_what_is_not(value: object) -> None:
    with pytest.raises(InputError, match=r"give auto, a noise level in grey levels") as caught:
        parse_denoise(value)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 900), st.integers(1, 900))
def test_patches_lie_in_the_frame_on_the_codecs_grid(height: int, width: int) -> None:
    y, x = np.mgrid[:height, :width]
    frame = np.stack([y, x, 0 * x], -1).astype(np.int32)
    found = patches(frame)
    assert found.shape[1:] == (PATCH, PATCH, 3)
    assert 1 <= len(found) <= MOST_PATCHES
    if min(height, width) >= PATCH:
        corners = found[:, 0, 0, :2]
        assert (corners % 8 == 0).all()
        assert len(np.unique(corners, axis=0)) == len(corners)  # none twice
        np.testing.assert_array_equal(found[:, -1, -1, :2], corners + PATCH - 1)


def test_the_network_is_told_what_was_asked(resolver: SuperResolver, checkpoint_path: Path) -> None:
    """Nothing, half, all, and both planes in their order: as in PyTorch."""
    import torch
    from diinn.train import checkpoint, protocol

    model, frame = checkpoint.load(checkpoint_path).model, ramp(20, 30)
    rgb = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1)
    seen = []
    for noise, compression in ((0, 0), (10, 0), (0, 25), (20, 50)):
        wanted = protocol.super_resolve(model, rgb, (45, 50), (noise, compression)).permute(1, 2, 0).numpy()[..., ::-1]
        found = resolver.resize(frame, (50, 45), denoise=Strength(noise, compression), dtype=np.float32)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        seen.append(found)
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(seen) for b in seen[:i])
    np.testing.assert_array_equal(resolver.resize(frame, (50, 45), dtype=np.float32), seen[0])
    np.testing.assert_array_equal(resolver.resize(frame, (50, 45), denoise=10, dtype=np.float32), seen[1])


def test_frames_of_one_batch_may_differ(resolver: SuperResolver) -> None:
    frames, view = [ramp(20, 30), ramp(20, 30)[::-1].copy(), ramp(16, 17)], [View.resize((50, 45))]
    strengths = [0, Strength(10, 50), "auto"]
    together = resolver.encode(frames, strengths)
    for frame, wanted, encoded in zip(frames, strengths, together, strict=True):
        alone = resolver.encode([frame], wanted)[0]  # type: ignore[arg-type]
        assert encoded.strength == alone.strength
        np.testing.assert_array_equal(resolver.decode(encoded, view)[0], resolver.decode(alone, view)[0])
    assert [encoded.strength for encoded in together[:2]] == [NONE, Strength(10, 50)]


def test_in_bands_too(bundle_path: Path, resolver: SuperResolver) -> None:
    frame, view = ramp(60, 30), [View.resize((50, 90))]
    with SuperResolver.open(bundle_path, memory_budget=1) as banded:
        encoded = banded.encode([frame], 8)[0]
        assert encoded.maps is None
        found = banded.decode(encoded, view, dtype=np.float32)[0]
    np.testing.assert_allclose(found, resolver.resize(frame, (50, 90), denoise=8, dtype=np.float32), atol=1e-6)


def test_what_is_reduced_is_cleaned_too(resolver: SuperResolver) -> None:
    """A view smaller than the frame is the frame itself, by area, where nothing is to be taken away."""
    frame = ramp(20, 30)
    plain = resolver.resize(frame, (15, 10), dtype=np.float32)
    np.testing.assert_allclose(plain, cv2.resize(frame, (15, 10), interpolation=cv2.INTER_AREA), atol=1e-6)
    whole = resolver.resize(frame, (30, 20), denoise=9, dtype=np.float32)
    found = resolver.resize(frame, (15, 10), denoise=9, dtype=np.float32)
    np.testing.assert_allclose(found, cv2.resize(whole, (15, 10), interpolation=cv2.INTER_AREA), atol=1e-6)


def test_a_list_of_the_wrong_length(resolver: SuperResolver) -> None:
    with pytest.raises(InputError, match="denoise has 2 values for 3 frames: give one, or as many"):
        resolver.encode([ramp(8, 8)] * 3, [0, 5])


def test_beyond_the_range_it_is_clamped_and_said_once(bundle_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with SuperResolver.open(bundle_path) as fresh, caplog.at_level(logging.WARNING):
        most = fresh.encode([ramp(8, 8)], Strength(20, 50))[0]
        assert not caplog.records
        for strength in (35, Strength(3, 99), 1e9):
            assert fresh.encode([ramp(8, 8)], strength)[0].strength.noise <= 20
        assert fresh.encode([ramp(8, 8)], Strength(99, 99))[0].strength == most.strength
    (record,) = caplog.records
    assert "denoise noise 35.0, compression 0 is beyond what tiny was trained for (noise 20" in record.getMessage()


def test_a_model_without_a_dial(dialless: SuperResolver, caplog: pytest.LogCaptureFixture) -> None:
    """Bundles of version 2 are such; without a strength they do as before."""
    frame = ramp(10, 12)
    assert dialless.encode([frame], 0)[0].strength == NONE
    dialless.check()
    for strength in (5, "auto", Strength(0, 10)):
        with pytest.raises(InputError, match=r"model plain has no dial .*: leave denoise out, or use a model with"):
            dialless.resize(frame, (24, 20), denoise=strength)  # type: ignore[arg-type]


def test_a_bundle_that_cannot_tell(bundle_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mute.diinn"
    shutil.copytree(bundle_path, copy)
    description = json.loads((copy / "bundle.json").read_text())
    del description["files"][bundles.ESTIMATOR]
    (copy / "bundle.json").write_text(json.dumps(description))
    with SuperResolver.open(copy) as mute:
        mute.encode([ramp(8, 8)], 5)
        with pytest.raises(InputError, match=r"mute holds no estimator.onnx.*: give a number in place of auto"):
            mute.encode([ramp(8, 8)], "auto")


@pytest.mark.parametrize("dial", [5, {"noise": 20}, {"noise": 0, "compression": 5}, {"noise": "1", "compression": 5}])
def test_bundles_with_a_dial_that_is_none(bundle_path: Path, tmp_path: Path, dial: object) -> None:
    copy = tmp_path / "odd.diinn"
    shutil.copytree(bundle_path, copy)
    description = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(description | {"dial": dial}))
    with pytest.raises(bundles.BundleError, match=r"dial = .* is not null, or the highest noise and compression"):
        bundles.load(copy)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8, 3), np.uint8),
        np.full((1, 1, 3), 255, np.uint8),
        np.full((50, 70, 3), 128, np.uint8),
        np.full((40, 40), 7, np.uint8),
        np.full((40, 40, 3), 0.5, np.float32),
        np.full((40, 40, 3), np.nan, np.float32),
        ramp(40, 50) * 3 - 1,
    ],
)
def test_auto_takes_any_frame(resolver: SuperResolver, frame: np.ndarray) -> None:
    found = resolver.estimate(frame)
    assert 0 <= found.noise <= 20
    assert 0 <= found.compression <= 50


def test_frames_as_bytes_and_as_floats_are_told_alike(resolver: SuperResolver) -> None:
    frame = demo.frame(3.0, (160, 120), 6)
    one, other = resolver.estimate(frame), resolver.estimate(frame.astype(np.float32) / 255)
    assert one.noise == pytest.approx(other.noise, abs=1e-3)
    assert one.compression == pytest.approx(other.compression, abs=1e-2)


def test_a_graph_that_is_no_estimator(bundle_path: Path) -> None:
    for name in ("decoder.onnx", "bundle.json"):
        with pytest.raises(bundles.BundleError, match=r"it is no estimator|cannot open"):
            Estimator((bundle_path / name).read_bytes(), bundle_path / name, Dial(20, 50))


def noisy(image: np.ndarray, level: float, seed: int, *, white: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rgb = np.ascontiguousarray(image[..., ::-1], np.float32) / np.float32(255)
    noise = rng.standard_normal(rgb.shape, np.float32) * level / 255 if white else sensor_noise(rgb, level, rng)
    return np.clip(np.rint((rgb + noise) * 255), 0, 255).astype(np.uint8)[..., ::-1].copy()


@pytest.mark.parametrize("white", [True, False])
def test_the_shipped_models_tell_the_noise_of_the_demo(white: bool) -> None:
    """And of clean frames that there is none."""
    with SuperResolver.open("nano") as nano:
        errors = []
        for seed in range(6):
            clean = demo.frame(9.0 * seed, (160, 120))
            assert nano.estimate(clean).noise < 2
            errors += [nano.estimate(noisy(clean, s, seed, white=white)).noise - s for s in (4, 8, 14)]
        assert np.median(np.abs(errors)) < (1 if white else 3)  # it is drawn, and nothing like a photograph


@pytest.mark.slow
@pytest.mark.parametrize("white", [True, False])
def test_the_shipped_models_tell_the_noise_of_the_hold_out(shared_data: Path, white: bool) -> None:
    torch = pytest.importorskip("torch", reason="no PyTorch: it reduces the photographs")
    from diinn.train import degradation
    from diinn.train.photographs import Photographs, find_images, split_holdout

    _, held = split_holdout(Photographs(find_images(shared_data / "train"), 1600, 32).files, 24)
    with SuperResolver.open("small") as small:
        for level in (0, 2, 5, 10, 15, 20):
            errors = []
            for seed, path in enumerate(held):
                image = cv2.imread(str(path))
                rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float() / 255
                lr = degradation.reduce(rgb, (image.shape[0] // 2, image.shape[1] // 2))
                frame = np.ascontiguousarray((lr.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8))
                for again in range(3):  # other sensors
                    made = noisy(frame, level, seed + 100 * again, white=white) if level else frame
                    errors.append(abs(small.estimate(made).noise - level))
            assert np.median(errors) <= 1, level


def test_what_flickers_is_smoothed_by_the_frames_own_time() -> None:
    rng = np.random.default_rng(0)
    seen = [Strength(float(n), 10) for n in np.clip(rng.normal(6, 1, 600), 0, None)]

    def noises(step: float) -> list[float]:
        dial, out = Smoothed(), []
        for i, strength in enumerate(seen):
            if dial.due(i * step):
                dial.add(strength, i * step)
            assert dial.value is not None
            out.append(dial.value.noise)
        return out

    first = noises(1 / 30)
    assert first == noises(1 / 30)  # the same file gives the same
    assert np.std(first[150:]) < 0.35
    assert np.mean(first[150:]) == pytest.approx(6, abs=0.3)
    assert noises(60.0)[-1] == pytest.approx(seen[-1].noise)  # a frame a minute: each speaks for itself


def test_lights_that_go_out_are_noticed_within_seconds_and_clocks_may_jump() -> None:
    dial = Smoothed()
    dial.add(Strength(1), 0.0)
    assert not dial.due(LOOK_SECONDS / 2)
    for i in range(1, 41):
        dial.add(Strength(12), i / 10)
    assert dial.value is not None
    assert dial.value.noise > 11.5
    assert dial.due(-100.0)  # set back
    dial.add(Strength(3), -100.0)
    assert dial.value == Strength(3)
    assert not dial.due(-100.0 + LOOK_SECONDS / 2)


@pytest.mark.parametrize(("rate", "looks"), [(90, 10), (24, 3.4), (15, 2.1), (1, 1), (0.1, 0.1)])
def test_looks_are_few_beside_frames(rate: float, looks: float) -> None:
    """Ten a second at most, and one frame in seven, as long as that is within a second."""
    dial, found = Smoothed(), 0
    for i in range(600):
        if dial.due(i / rate):
            dial.add(Strength(5), i / rate)
            found += 1
    assert found == pytest.approx(looks * 600 / rate, rel=0.15)
