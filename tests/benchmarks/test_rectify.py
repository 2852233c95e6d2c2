"""What the direct way to an undistorted view gains, on pictures whose undistorted form is known."""

from pathlib import Path

import numpy as np
import pytest
from diinn.benchmarks import rectify
from diinn.runtime import SuperResolver


@pytest.fixture(scope="module")
def small():
    with SuperResolver.open("small") as resolver:
        yield resolver


def test_the_direct_way_is_sharper_on_a_drawn_scene(small: SuperResolver) -> None:
    """Lines and letters, which a second interpolation blurs."""
    rows = {row.way: row.psnr for row in rectify.compare(small, list(rectify.scenes([], 4)), 2)}
    assert rows[rectify.DIRECT] > max(rows[rectify.CUBIC], rows[rectify.LANCZOS]) + 0.5
    assert rows[rectify.DIRECT] > rows[rectify.BICUBIC] + 2


def test_the_direct_way_on_photographs(small: SuperResolver, shared_data: Path) -> None:
    pictures = list(rectify.scenes([shared_data / "benchmark" / "Set5"], 5))
    rows = {row.way: row for row in rectify.compare(small, pictures, 2)}
    assert rows[rectify.DIRECT].psnr > rows[rectify.CUBIC].psnr
    assert rows[rectify.DIRECT].psnr > rows[rectify.LANCZOS].psnr
    assert all(row.milliseconds > 0 for row in rows.values())


def test_the_simulated_camera_is_undone_by_its_calibration() -> None:
    """A smooth picture, distorted and rectified: it comes back where the frame holds it."""
    v, u = np.mgrid[0:120, 0:160]
    smooth = np.stack([128 + 90 * np.sin(u / 17), 128 + 90 * np.cos(v / 13), u + 0.3 * v], -1).clip(0, 255)
    scene = smooth.astype(np.uint8)
    with SuperResolver.open("nano") as resolver:
        entries, mask = rectify.ways(resolver, rectify.photographed(scene, 2), (160, 120))
        for way in (rectify.DIRECT, rectify.CUBIC, rectify.BICUBIC):
            error = np.abs(entries[way]().astype(int) - scene)[mask > 0]
            assert np.median(error) <= 2, way
    assert mask.mean() > 0.6
