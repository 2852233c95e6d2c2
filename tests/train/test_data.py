"""Samples hold what they claim; batches depend on seed and number alone."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diinn.runtime import InputError
from diinn.runtime.geometry import grid
from diinn.runtime.noise.sensor_noise import sensor_noise
from diinn.train import config, data, degradation
from diinn.train.photographs import Photographs, find_images, read_rgb, split_holdout
from PIL import Image


def settings(**changes: object) -> config.DataConfig:
    values = {"patch": 12, "batch": 3, "queries": 40, "holdout": 2}
    return config.parse(config.DataConfig, values | changes, "test")


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)


def test_a_sample_at_scale_1_is_the_crop_itself() -> None:
    sample = data.make_sample(picture(), 1.0, settings(), grid.NEAREST, np.random.default_rng(1))
    assert (sample.query[:, :2] == 0).all()
    assert (sample.query[:, 2] == 1).all()
    lr = sample.lr[0].permute(1, 2, 0).reshape(-1, 3)
    torch.testing.assert_close(lr[sample.rows], sample.rgb, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [2.0, 3.14, 4.0])
def test_queries_point_at_the_pixels_they_take(scale: float) -> None:
    """On a picture that is a ramp, position tells the colour."""
    ramp = np.stack(np.meshgrid(np.arange(120), np.arange(100)), -1)
    image = np.dstack([ramp, np.zeros((100, 120))]).astype(np.uint8)
    sample = data.make_sample(image, scale, settings(queries=300, patch=20), grid.NEAREST, np.random.default_rng(2))
    size = round(20 * scale)
    row, col = sample.rows // 20, sample.rows % 20
    where = (torch.stack([row, col], 1) + 0.5 + sample.query[:, :2] / 2) * size / 20 - 0.5  # HR pixels in the crop
    colour = sample.rgb[:, :2] * 255  # (x, y) of the whole picture, up to flips and transposition
    fit = torch.linalg.lstsq(torch.cat([where, torch.ones(300, 1)], 1), colour).solution
    error = torch.cat([where, torch.ones(300, 1)], 1) @ fit - colour
    assert error.abs().max() < 1e-2
    assert fit[:2].abs().max() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(sample.query[:, 2], torch.full((300,), (20 / size) ** 2))


def test_lr_is_antialiased_bicubic_on_uint8_levels() -> None:
    lr = degradation.reduce(torch.rand(3, 40, 40), (20, 20)) * 255
    torch.testing.assert_close(lr, lr.round(), atol=1e-4, rtol=0)


def test_bicubic_is_keys_kernel_with_a_of_minus_one_half_stretched_by_the_scale() -> None:
    def kernel(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    line = np.random.default_rng(0).uniform(0, 1, 21)
    centres = (np.arange(8) + 0.5) * 21 / 8
    weights = kernel((np.arange(21) + 0.5 - centres[:, None]) / (21 / 8))
    wanted = (weights / weights.sum(1, keepdims=True)) @ line
    image = torch.from_numpy(line).float().expand(3, 5, 21)
    np.testing.assert_allclose(degradation.bicubic(image, (5, 8))[0, 0].numpy(), wanted, atol=1e-6)


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    stream = data.PatchStream([picture()], settings(), grid.NEAREST, seed=3)
    from_start = [batch for batch, _ in zip(stream, range(4), strict=False)]
    resumed = next(iter(data.PatchStream([picture()], settings(), grid.NEAREST, seed=3, first=3)))
    for a, b in zip(from_start[3], resumed, strict=True):
        assert torch.equal(a, b)
    other = next(iter(data.PatchStream([picture()], settings(), grid.NEAREST, seed=4, first=3)))
    assert not torch.equal(other.lr, resumed.lr)


def test_rows_of_a_batch_are_shifted_by_sample() -> None:
    batch = data.PatchStream([picture()], settings(), grid.NEAREST, seed=0).batch(0)
    assert batch.lr.shape == (3, 3, 12, 12)
    assert batch.rows.shape == (120,)
    assert (batch.rows.reshape(3, 40) // 144 == torch.arange(3)[:, None]).all()


def test_the_holdout_stays_put(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(30)]
    train, held = split_holdout(files, 5)
    assert len(held) == 5
    assert sorted(train + held) == sorted(files)
    _, again = split_holdout([f for f in files if f not in train[:10]], 5)
    assert again == held


@pytest.mark.parametrize("layout", grid.LAYOUTS.values())
def test_samples_of_every_layout_are_the_runtimes_queries(layout: grid.Layout) -> None:
    options = settings(queries=None, patch=10, scales={"every": [2, 3, 3.5]}, batch=2)
    batch = data.PatchStream([picture()], options, layout, seed=0).batch(5)
    assert batch.lr.shape == (6, 3, 10, 10)
    sizes = [20, 30, 35] * 2
    queries = [grid.resize((10, 10), (size, size), layout).arrays() for size in sizes]
    np.testing.assert_array_equal(batch.rows, np.concatenate([q[0] + 100 * i for i, q in enumerate(queries)]))
    np.testing.assert_array_equal(batch.query, np.concatenate([q[1] for q in queries]))
    shares = [float(part.sum()) for part in torch.split(batch.weight, [size**2 for size in sizes])]
    assert shares == pytest.approx([1 / 6] * 6)


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_a_batch(ranks: int) -> None:
    options = settings(batch=6)
    whole = data.PatchStream([picture()], options, grid.NEAREST, seed=1).batch(7)
    parts = [
        data.PatchStream([picture()], options, grid.NEAREST, 1, rank=r, ranks=ranks).batch(7) for r in range(ranks)
    ]
    for r, part in enumerate(parts):
        assert torch.equal(part.lr, whole.lr[r::ranks])
        assert torch.equal(part.rgb.reshape(-1, 40, 3), whole.rgb.reshape(6, 40, 3)[r::ranks])


def test_shrinking_makes_texture_finer() -> None:
    smooth = cv2.GaussianBlur(picture(), (0, 0), 1.5)
    detail = []
    for shrink in (1.0, 3.0):
        options = settings(shrink=shrink, queries=None)
        samples = [data.make_sample(smooth, 1.0, options, grid.NEAREST, np.random.default_rng(i)) for i in range(20)]
        detail.append(np.mean([float(s.lr.diff(dim=-1).abs().mean()) for s in samples]))
    assert detail[1] > 1.2 * detail[0]


def smooth_hr(side: int = 96) -> torch.Tensor:
    grey = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(grey, side, mode="bicubic")[0].clamp(0, 1) * 0.6 + 0.2


def degraded(**changes: object) -> tuple[torch.Tensor, torch.Tensor, tuple[float, float]]:
    """A patch that suffers ``changes`` and nothing else."""
    nothing = {"clean": 0, "noise": [0, 0], "compressed": 0, "noisy": 0, "optics": 0, "grey": 0, "white": 1}
    options = config.parse(config.DegradeConfig, nothing | changes, "test")
    return degradation.degrade(smooth_hr(), (48, 48), options, np.random.default_rng(3))


@pytest.mark.parametrize("white", [0, 1])
def test_noise_has_the_level_that_is_told(white: int) -> None:
    hr, lr, (noise, compression) = degraded(noise=[6, 6], white=white)
    torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-3, rtol=0)
    assert (noise, compression) == (6, 0)
    assert float((lr - degradation.reduce(hr, (48, 48))).std()) * 255 == pytest.approx(6, rel=0.08)


def test_a_sensors_noise_is_correlated_and_stronger_in_shadows() -> None:
    """Unlike white noise, whose neighbours are independent."""
    dark, light = np.full((64, 64, 3), 0.15, np.float32), np.full((64, 64, 3), 0.9, np.float32)
    kinship = []
    for seed in range(12):
        both = np.concatenate([dark, light])
        noise = sensor_noise(both, 5, np.random.default_rng(seed))
        assert np.sqrt(np.mean(noise**2)) * 255 == pytest.approx(5, rel=1e-3)
        assert noise[:60].std() > noise[68:].std()
        kinship.append(np.mean(noise[:, 1:] * noise[:, :-1]) / np.mean(noise**2))
    assert np.median(kinship) > 0.4
    white = degradation.white_noise((64, 64, 3), 5, np.random.default_rng(0))
    assert abs(np.mean(white[:, 1:] * white[:, :-1]) / np.mean(white**2)) < 0.05


def test_a_patch_is_told_the_noise_of_its_frame() -> None:
    """A dark corner of a bright frame is noisier than the frame, and the level is the frame's."""
    corner, frame = np.full((64, 64, 3), 0.1, np.float32), np.full((24, 24, 3), 0.8, np.float32)
    levels = [np.std(sensor_noise(corner, 5, np.random.default_rng(seed), frame)) * 255 for seed in range(8)]
    assert np.median(levels) > 6


def test_compression_lens_and_grey_cameras() -> None:
    hr, lr, strength = degraded(compressed=1, jpeg=[60, 60])
    clean = degradation.reduce(hr, (48, 48))
    assert strength == (0, 40)
    assert 0 < float((lr - clean).abs().mean()) < 0.05
    rough = degraded(optics=1, blur=[1, 1])[1]
    assert float(rough.diff(dim=-1).abs().mean()) < 0.95 * float(clean.diff(dim=-1).abs().mean())
    hr, lr, _ = degraded(grey=1, noise=[8, 8], white=0)
    assert (hr[0] == hr[1]).all()
    assert (lr[0] == lr[2]).all()


def test_degradation_depends_on_its_seed_alone() -> None:
    options = settings(degrade={})
    samples = [data.make_sample(picture(), 2.0, options, grid.NEAREST, np.random.default_rng(s)) for s in (1, 1, 2)]
    assert samples[0].lr.shape[1] == 5
    assert (samples[0].lr == samples[1].lr).all()
    assert (samples[0].lr != samples[2].lr).any()
    lr = smooth_hr(32)
    for name in ("noise:5", "camera:5", "jpeg:70", "blur:1", "blur:0.5+camera:3+jpeg:80"):
        one = degradation.Degradation.parse(name)
        assert (one.of(lr, 1) == one.of(lr, 1)).all()
        assert float((one.of(lr, 1) - lr).abs().mean()) > 1e-3
    assert degradation.Degradation.parse("noise:3+camera:4+jpeg:80").strength == (5, 20)
    assert degradation.Degradation.parse("clean").of(lr, 0) is lr


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noise",
        "noise:",
        "noise:-1",
        "noise:x",
        "jpg:80",
        "jpeg:0",
        "jpeg:80.5",
        "noise:1+noise:2",
        "noise:nan",
        "blur:11",
    ],
)
def test_degradations_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match="degradation " + re.escape(repr(text))):
        degradation.Degradation.parse(text)


def test_clean_patches_are_mostly_told_so() -> None:
    """And the others nearly what they suffered."""
    options = config.DegradeConfig()
    rng = np.random.default_rng(0)
    clean = [degradation.inexact(degradation.NONE, options, rng) for _ in range(300)]
    assert 0.5 < np.mean([t == (0, 0) for t in clean]) < 0.9
    assert max(noise for noise, _ in clean) < 2
    given = np.array([degradation.inexact((8, 30), options, rng) for _ in range(300)])
    np.testing.assert_allclose(np.median(given, 0), (8, 30), rtol=0.05)
    assert (given.std(0) > 0.5).all()


def test_images_of_every_kind_and_those_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), picture()[..., 0])
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([picture(), picture()[..., 0]]))
    cv2.imwrite(str(tmp_path / "deep.png"), picture().astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "small.png"), picture()[:8])
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "bad.png").write_bytes(b"no image")
    files = find_images(tmp_path)
    images = Photographs(files, 1600, 12)
    assert [image.shape for image in images] == [(60, 70, 3)] * 3
    assert [path.name for path in images.files] == ["alpha.png", "deep.png", "grey.png"]
    assert "bad.png' is not an image" in caplog.text
    assert "small.png is 70x8, below 12 pixels: left out" in caplog.text
    assert "2 of 5 images were left out" in caplog.text
    chosen = images.only([files[0], tmp_path / "grey.png"])
    assert [path.name for path in chosen.files] == ["alpha.png", "grey.png"]
    assert (chosen[1] == images[2]).all()
    with pytest.raises(InputError, match="none of the 5 images"):
        Photographs(files, 1600, 500)


@pytest.mark.parametrize(("mode", "ending"), [("CMYK", "jpg"), ("CMYK", "tif"), ("P", "png"), ("1", "png")])
def test_colours_of_every_kind_become_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (40, 1, 3))
    ramp[..., 1] = 255 - ramp[..., 1]
    image = Image.fromarray(ramp).convert(mode)
    image.save(tmp_path / f"a.{ending}", quality=95)
    wanted = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read_rgb(tmp_path / f"a.{ending}") - wanted).mean() < 1.5


def test_what_does_not_fit_into_memory_is_read_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture() // (i + 1))
    files = find_images(tmp_path)
    all_kept, some_kept = Photographs(files, 1600, 12), Photographs(files, 1600, 12, budget=2 * picture().nbytes)
    assert "2 of 4 images do not fit" in caplog.text
    for a, b in zip(all_kept, some_kept, strict=True):
        np.testing.assert_array_equal(a, b)
    files[3].unlink()
    assert len(some_kept[1]) == 60
    with pytest.raises(InputError, match="no file"):
        some_kept[3]


def test_big_photographs_are_halved(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "big.png"), np.zeros((200, 300, 3), np.uint8))
    assert Photographs([tmp_path / "big.png"], 80, 12)[0].shape == (50, 75, 3)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        find_images(tmp_path / "none")
    with pytest.raises(InputError, match="no image"):
        find_images(tmp_path)
