"""Samples hold what they claim; batches depend on seed and number alone."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diinn.runtime import InputError
from diinn.train import config, data, degradation


def settings(**changes: object) -> config.DataConfig:
    values = {"patch": 12, "batch": 3, "queries": 40, "holdout": 2}
    return config.parse(config.DataConfig, values | changes, "test")


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)


def test_a_sample_at_scale_1_is_the_crop_itself() -> None:
    sample = data.make_sample(picture(), settings(scales={"choices": [1]}), np.random.default_rng(1))
    assert (sample.query[:, :2] == 0).all()
    assert (sample.query[:, 2] == 1).all()
    lr = sample.lr.permute(1, 2, 0).reshape(-1, 3)
    torch.testing.assert_close(lr[sample.rows], sample.rgb, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [2.0, 3.14, 4.0])
def test_queries_point_at_the_pixels_they_take(scale: float) -> None:
    """On a picture that is a ramp, position tells the colour."""
    ramp = np.stack(np.meshgrid(np.arange(120), np.arange(100)), -1)
    image = np.dstack([ramp, np.zeros((100, 120))]).astype(np.uint8)
    options = settings(scales={"choices": [scale]}, queries=300, patch=20)
    sample = data.make_sample(image, options, np.random.default_rng(2))
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
    stream = data.PatchStream([picture()], settings(), seed=3)
    from_start = [batch for batch, _ in zip(stream, range(4), strict=False)]
    resumed = next(iter(data.PatchStream([picture()], settings(), seed=3, first=3)))
    for a, b in zip(from_start[3], resumed, strict=True):
        assert torch.equal(a, b)
    other = next(iter(data.PatchStream([picture()], settings(), seed=4, first=3)))
    assert not torch.equal(other.lr, resumed.lr)


def test_rows_of_a_batch_are_shifted_by_sample() -> None:
    batch = data.PatchStream([picture()], settings(), seed=0).batch(0)
    assert batch.lr.shape == (3, 3, 12, 12)
    assert batch.rows.shape == (120,)
    assert (batch.rows.reshape(3, 40) // 144 == torch.arange(3)[:, None]).all()


def test_the_holdout_stays_put(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(30)]
    train, held = data.split_holdout(files, 5)
    assert len(held) == 5
    assert sorted(train + held) == sorted(files)
    _, again = data.split_holdout([f for f in files if f not in train[:10]], 5)
    assert again == held


def test_images_of_every_kind(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), picture()[..., 0])
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([picture(), picture()[..., 0]]))
    cv2.imwrite(str(tmp_path / "deep.png"), picture().astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "small.png"), picture()[:8])
    files = data.find_images(tmp_path)
    images = data.read_photographs(files, 1600, 12)
    assert [image.shape for image in images] == [(60, 70, 3)] * 3
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bad\.png"):
        data.read_photographs(data.find_images(tmp_path), 1600, 12)


def test_big_photographs_are_halved(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "big.png"), np.zeros((200, 300, 3), np.uint8))
    assert data.read_photograph(tmp_path / "big.png", 80).shape == (50, 75, 3)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        data.find_images(tmp_path / "none")
    with pytest.raises(InputError, match="no image"):
        data.find_images(tmp_path)
