"""What every backend on a GPU does with frames and pixels, copied or read and written in the host's memory."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ramp
from diinn.benchmarks import speed
from diinn.runtime import DiinnError, SuperResolver
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
        upload, fetch = device.upload, device.fetch
        patch.setattr(device, "upload", lambda at, values: (self.up.append(values.nbytes), upload(at, values))[1])
        patch.setattr(device, "fetch", lambda to, at: (self.down.append(to.nbytes), fetch(to, at))[1])

    def clear(self) -> None:
        self.up.clear()
        self.down.clear()


def outputs(resolver: SuperResolver, frame: np.ndarray) -> list[np.ndarray]:
    """A rectangle, a map with a border and a large view, in bytes and floats."""
    x, y = np.meshgrid(np.linspace(-2, 20, 21, dtype=np.float32), np.linspace(0, 17, 15, dtype=np.float32))
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
    frame = (ramp(18, 20) * 255).astype(np.uint8)
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
    frames = [(ramp(18, 20) * (100 + n)).astype(np.uint8) for n in range(4)]  # they lie in the same places
    with SuperResolver.open(bundle_path, backend=kind, check=False, cuda_graphs=False, zero_copy=False) as plain:
        wanted = [plain.resize(frame, (30, 24)) for frame in frames]
    with SuperResolver.open(bundle_path, backend=kind, check=False, cuda_graphs=asked) as resolver:
        backend: Any = resolver.backend
        for frame, right in zip(frames, wanted, strict=True):  # run until memory is settled, captured, replayed
            np.testing.assert_array_equal(resolver.resize(frame, (30, 24)), right)
        graphs = integrated if asked is None else asked
        assert backend.replays == backend.device.replayed
        assert (backend.replays > 0) == graphs


@pytest.mark.parametrize("stay", [False, True])
def test_the_next_frame_leaves_one_alone_that_is_still_encoded(
    trt: Patch, device_kind: type, kind: str, bundle_path: Path, stay: bool
) -> None:
    frames, view = [ramp(16, 18), ramp(16, 18)[::-1].copy(), ramp(18, 20)], View.resize((30, 24))
    with SuperResolver.open(bundle_path, backend=kind, check=False, zero_copy=stay) as resolver:
        right = [resolver.decode(resolver.encode([frame])[0], [view])[0] for frame in frames]
        encoded = [resolver.encode([frame])[0] for frame in frames]  # the last needs larger pinned memory
        del encoded[1]  # its maps are given back while they are made
        for one, wanted in zip(encoded, right[::2], strict=True):
            np.testing.assert_array_equal(resolver.decode(one, [view])[0], wanted)


def test_encoding_is_not_waited_for(trt: Patch, device_kind: type, kind: str, bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path, backend=kind, check=False) as resolver:
        device = resolver.backend.device  # type: ignore[attr-defined]
        resolver.resize(ramp(16, 18), (20, 20))
        began = time.perf_counter()
        with trt.context() as patch:
            patch.setattr(device, "wait", lambda: pytest.fail("waited"))
            (encoded,) = resolver.encode([ramp(16, 18)])
        resolver.decode(encoded, [View.resize((20, 20))])
        assert began < encoded.maps.ready_at < time.perf_counter()


def test_what_the_encoder_takes_is_not_the_decoders(
    trt: Patch, device_kind: type, kind: str, bundle_path: Path
) -> None:
    """``encode`` returns before the engine has run: the time until it has is measured all the same."""
    from diinn.runtime.stream.batcher import Batcher

    frame, view, slow = ramp(16, 18), View.resize((20, 20)), 0.5
    with SuperResolver.open(bundle_path, backend=kind, check=False) as resolver:
        encode, decode = speed.in_runtime(resolver, (18, 16), (20, 20))
        decode(encode())
        backend: Any = resolver.backend
        put = backend.encode_planar
        trt.setattr(backend, "encode_planar", lambda *what: (put(*what), backend.device.put(time.sleep, slow))[0])
        began = time.perf_counter()
        encoding, decoding = speed._time((encode, decode))
        assert slow <= encoding <= encoding + decoding <= time.perf_counter() - began
        job = SimpleNamespace(
            lane=SimpleNamespace(name="front", denoise=SimpleNamespace(of=lambda frame: 0.0)),
            frame=SimpleNamespace(image=frame),
            views={"all": view},
        )
        batcher: Any = SimpleNamespace(resolver=resolver)
        began = time.perf_counter()
        _, encoding, decoding = Batcher._computed(batcher, [job])  # type: ignore[list-item]
        assert slow <= encoding <= encoding + decoding <= time.perf_counter() - began


def test_what_fails_late_is_one_error_and_closing_goes_on(
    trt: Patch, device_kind: type, kind: str, bundle_path: Path
) -> None:
    with SuperResolver.open(bundle_path, backend=kind, check=False) as resolver:
        backend: Any = resolver.backend
        resolver.resize(ramp(16, 18), (20, 20))

        def lost() -> None:
            raise DiinnError("CUDA failed: cuEventSynchronize failed: an illegal address")

        marks = SimpleNamespace(wait=lost)

        with trt.context() as patch:
            patch.setattr(backend.device, "mark", lambda: marks)
            patch.setattr(backend.device, "fetch", lambda *what: marks)
            (encoded,) = resolver.encode([ramp(16, 18)])
            with pytest.raises(DiinnError, match="CUDA failed"):
                resolver.decode(encoded, [View.resize((20, 20))])
            with pytest.raises(DiinnError, match="CUDA failed"):
                resolver.encode([ramp(16, 18)])
        fails, wait = [lost], backend.device.wait
        trt.setattr(backend.device, "wait", lambda: fails.pop()() if fails else wait())
    assert backend.closed
    assert not fails


def test_an_engine_at_work_is_not_replaced(trt: Patch, device_kind: type, kind: str, bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path, backend=kind, check=False) as resolver:
        backend: Any = resolver.backend
        encoder = getattr(backend, "encoder", None) or backend._encoder
        trt.setattr(type(backend), "verify", lambda self: None)
        small, large = ramp(16, 18), ramp(490, 20)  # higher than the engine takes
        right = resolver.resize(small, (20, 20))
        (encoded,) = resolver.encode([small])
        order: list[str] = []
        wait, replace, release = backend.device.wait, encoder.prepare_for, backend.release
        trt.setattr(backend.device, "wait", lambda: (order.append("waited"), wait())[1])
        trt.setattr(encoder, "prepare_for", lambda *what: (order.append("replaced"), replace(*what))[1])
        resolver.encode([large])
        assert order[:2] == ["waited", "replaced"]
        np.testing.assert_array_equal(resolver.decode(encoded, [View.resize((20, 20))])[0], right)
        trt.setattr(backend, "release", lambda: (order.append("released"), release())[1])
        resolver.encode([small])
        order.clear()
    assert order[:2] == ["waited", "released"]
