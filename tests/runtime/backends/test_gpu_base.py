"""What every backend on a GPU does with frames and pixels, copied or read and written in the host's memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ramp
from diinn.runtime import SuperResolver
from diinn.runtime.geometry.view import View

Patch = pytest.MonkeyPatch
pytestmark = pytest.mark.device
FEW = 1024  # bytes: addresses, levels, tables of segments


@pytest.fixture(params=["cuda", "tensorrt"])
def kind(request: pytest.FixtureRequest, trt: Patch) -> str:
    """A backend, whose encoder is an engine."""
    return str(request.param)


class Copies:
    """Bytes copied since ``clear``, by direction."""

    def __init__(self, device: Any, patch: Patch) -> None:
        self.up: list[int] = []
        self.down: list[int] = []
        upload, download = device.upload, device.download
        patch.setattr(device, "upload", lambda at, values: (self.up.append(values.nbytes), upload(at, values))[1])
        patch.setattr(device, "download", lambda to, at: (self.down.append(to.nbytes), download(to, at))[1])

    def clear(self) -> None:
        self.up.clear()
        self.down.clear()


def outputs(resolver: SuperResolver, frame: np.ndarray) -> list[np.ndarray]:
    """A rectangle, a map with a border and a large view, in bytes and floats."""
    x, y = np.meshgrid(np.linspace(-2, 18, 21, dtype=np.float32), np.linspace(0, 11, 15, dtype=np.float32))
    views = [View.roi((1.5, 2.25, 15, 7.5), (23, 17)), View.remap(x, y, border_value=0.5), View.resize((30, 24))]
    (encoded,) = resolver.encode([frame])
    resolver.backend.poison()  # type: ignore[attr-defined]
    return [image for dtype in (np.uint8, np.float32) for image in resolver.decode(encoded, views, dtype=dtype)]


@pytest.mark.parametrize(
    ("integrated", "asked", "stay"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_frames_and_pixels_are_copied_or_stay(
    trt: Patch, device_kind: type, kind: str, bundle_path: Path, integrated: bool, asked: bool | None, stay: bool
) -> None:
    trt.setattr(device_kind, "integrated", integrated)
    frame = (ramp(12, 18) * 255).astype(np.uint8)
    with SuperResolver.open(bundle_path, backend=kind, check=False, zero_copy=not stay) as other:
        wanted = outputs(other, frame)
    with SuperResolver.open(
        bundle_path, backend=kind, check=False, zero_copy=asked, cuda_graphs=False, chunk=500
    ) as resolver:
        outputs(resolver, frame)  # tables of views are uploaded once
        copies = Copies(resolver.backend.device, trt)  # type: ignore[attr-defined]
        resolver.encode([frame])
        assert (frame.nbytes in copies.up) == (not stay)
        copies.clear()
        for found, right in zip(outputs(resolver, frame), wanted, strict=True):
            np.testing.assert_array_equal(found, right)
        (encoded,) = resolver.encode([frame])
        copies.clear()
        resolver.decode(encoded, [View.resize((30, 24))])
        assert (copies.down == []) == stay
        assert max(copies.up) < FEW


@pytest.mark.parametrize("stay", [False, True])
def test_ids_that_are_named_one_by_one_are_copied_or_stay(
    trt: Patch, device_kind: type, kind: str, bundle_path: Path, stay: bool
) -> None:
    """Bands of a frame decode what lies in them of a map."""
    frame = ramp(40, 21)
    with SuperResolver.open(bundle_path, backend=kind, check=False) as whole:
        bundle = whole.bundle
        x, y = np.meshgrid(np.linspace(-3, 22, 50, dtype=np.float32), np.linspace(0, 39, 40, dtype=np.float32))
        right = whole.remap(frame, x, y)
        trt.setattr(type(whole.backend), "holds", lambda self, size: False)
    budget = bundle.workspace * 21 * (4 * bundle.radius + 1)
    with SuperResolver.open(
        bundle_path, backend=kind, check=False, memory_budget=budget, chunk=700, zero_copy=stay
    ) as resolver:
        assert resolver.encode([frame])[0].maps is None
        np.testing.assert_array_equal(resolver.remap(frame, x, y), right)


@pytest.mark.parametrize(("integrated", "asked"), [(False, None), (True, None), (True, False), (False, True)])
def test_graphs_are_replayed_on_an_integrated_gpu_or_where_asked(
    trt: Patch, device_kind: type, kind: str, bundle_path: Path, integrated: bool, asked: bool | None
) -> None:
    trt.setattr(device_kind, "integrated", integrated)
    frames = [(ramp(12, 18) * (100 + n)).astype(np.uint8) for n in range(3)]  # they lie in the same places
    with SuperResolver.open(bundle_path, backend=kind, check=False, cuda_graphs=False, zero_copy=False) as plain:
        wanted = [plain.resize(frame, (30, 24)) for frame in frames]
    with SuperResolver.open(bundle_path, backend=kind, check=False, cuda_graphs=asked) as resolver:
        backend: Any = resolver.backend
        for frame, right in zip(frames, wanted, strict=True):  # run, captured, replayed
            np.testing.assert_array_equal(resolver.resize(frame, (30, 24)), right)
        graphs = integrated if asked is None else asked
        assert (backend.replays, backend.device.replayed) == ((4, 4) if graphs else (0, 0))
