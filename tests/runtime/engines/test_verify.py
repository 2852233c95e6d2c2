"""How engines are compared with the CPU: exactly, in bounded time and memory; here the CPU stands on both sides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from diinn.runtime import SuperResolver
from diinn.runtime.engines import verify
from diinn.runtime.engines.profiles import Profile

RIVALS = sorted((ROOT / "benchmarks" / "results" / "comparison").glob("*.diinn"))


class Watched:
    """A resolver; notes how large the frames are that it encodes, and adds ``fault`` to what it decodes there."""

    def __init__(self, resolver: SuperResolver, fault: Any = None) -> None:
        self.bundle, self.resolver, self.fault, self.pixels = resolver.bundle, resolver, fault, 0

    def encode(self, frames: Any, strengths: Any) -> Any:
        self.pixels = max(self.pixels, sum(frame.shape[0] * frame.shape[1] for frame in frames))
        return self.resolver.encode(frames, strengths)

    def decode(self, encoded: Any, views: Any, dtype: Any) -> Any:
        images = self.resolver.decode(encoded, views, dtype=dtype)
        if self.fault is not None:
            (view,) = views
            x, y, *_ = view.rect
            images[0][self.fault[0] if (x, y) == (0, 0) else ...] += self.fault[1] if (x, y) == (0, 0) else 0
        return images


def profile(bundle: Any, width: int, height: int, cameras: int = 1) -> Profile:
    shape = {"frame": (cameras, bundle.planes, height, width)}
    return Profile({"frame": (1, bundle.planes, 16, 16)}, shape, shape)


@pytest.fixture(params=["nano", *RIVALS], ids=lambda path: Path(path).stem)
def resolver(request: pytest.FixtureRequest) -> Iterator[SuperResolver]:
    with SuperResolver.open(request.param, backend="onnxruntime", check=False) as opened:
        yield opened


def test_a_part_of_a_frame_is_what_it_is_in_the_whole(resolver: SuperResolver) -> None:
    frames = profile(resolver.bundle, 231, 170, cameras=2)
    ours, theirs = Watched(resolver), Watched(resolver)
    rows = [*verify._rows(ours, theirs, frames, verify._noise)]
    assert (rows[0].frame, rows[0].batch) == ((231, 170), 2)
    assert len(rows) == verify.SIZES + 1
    assert max(row.largest for row in rows) < 2e-5
    assert ours.pixels == 2 * 231 * 170
    assert theirs.pixels <= (verify.PART + 2 * (resolver.bundle.radius + 2)) ** 2


@pytest.mark.parametrize(("fault", "largest"), [(0.25, 0.25), (np.nan, np.inf)])
def test_one_wrong_pixel_is_found(fault: float, largest: float) -> None:
    with SuperResolver.open("nano", backend="onnxruntime", check=False) as resolver:
        ours, theirs = Watched(resolver, ((3, 5), fault)), Watched(resolver)
        first = next(verify._rows(ours, theirs, profile(resolver.bundle, 160, 120), verify._noise))
    assert first.largest == pytest.approx(largest, abs=1e-4)
    assert first.rms == np.inf if np.isinf(largest) else 0 < first.rms < 0.01


def test_small_frames_are_compared_whole() -> None:
    rng = np.random.default_rng(0)
    assert [*verify._parts(rng, (40, 30))] == [(0, 0, 40, 30)]
    parts = [*verify._parts(rng, (1920, 64))]
    assert (0, 0, 96, 64) in parts
    assert (1824, 0, 96, 64) in parts
    assert len(parts) <= 4
