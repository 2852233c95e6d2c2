"""Small real things for the tests: a checkpoint, its bundle, photographs where they are at hand."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # read when cv2 is imported; as diinn-run

import cv2
import numpy as np
import pytest
from hypothesis import settings

pytest_plugins = ("served", "commanded")
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
DOUBLE = ROOT / "tests" / "double"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no photographs: {folder} is not there")
    return folder


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a dial and random weights, as a checkpoint of ours."""
    import torch
    from diinn.train import checkpoint
    from diinn.train.decoders import DiinnConfig
    from diinn.train.encoders import CompactConfig
    from diinn.train.model import DialConfig, ModelConfig, SuperResolutionModel

    torch.manual_seed(1)
    encoder, decoder = CompactConfig(channels=16, blocks=1), DiinnConfig(depth=3, width=16)
    model = SuperResolutionModel(ModelConfig(encoder, decoder, dial=DialConfig()))
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    checkpoint.save(path, checkpoint.Checkpoint(model, (1.0, 4.0), 7))
    return path


@pytest.fixture(scope="session")
def bundle_path(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diinn.export import writer

    return writer.export(checkpoint_path, tmp_path_factory.mktemp("bundle") / "tiny.diinn").path


@pytest.fixture(scope="session")
def dialless_path(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of version 2, which knows no dial, of the same model without its dial."""
    from dataclasses import replace

    from diinn.export import writer
    from diinn.train import checkpoint
    from diinn.train.model import SuperResolutionModel

    known = checkpoint.load(checkpoint_path)
    model = SuperResolutionModel(replace(known.model.config, dial=None))
    state = dict(known.model.state_dict())
    state["encoder.head.weight"] = state["encoder.head.weight"][:, :3]
    model.load_state_dict(state)
    folder = tmp_path_factory.mktemp("dialless")
    checkpoint.save(folder / "plain.pth", replace(known, model=model))
    path = writer.export(folder / "plain.pth").path
    description = json.loads((path / "bundle.json").read_text())
    assert description.pop("dial") is None
    (path / "bundle.json").write_text(json.dumps(description | {"version": 2}))
    return path


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A frame with structure, uint8 [60, 80, 3] BGR."""
    from diinn.runtime import demo

    return demo.frame(3.0, (80, 60))


@pytest.fixture
def photo_path(tmp_path: Path, photo: np.ndarray) -> Path:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), photo)
    return path


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures to train on."""
    from diinn.runtime import demo

    folder = tmp_path_factory.mktemp("photos")
    for i in range(8):
        cv2.imwrite(str(folder / f"p{i}.png"), demo.frame(7.0 * i, (96, 72)))
    return folder


def ramp(height: int, width: int) -> np.ndarray:
    """float32 noise in [0, 1], BGR [h, w, 3], the same every time."""
    return np.random.default_rng(height * 1000 + width).uniform(0, 1, (height, width, 3)).astype(np.float32)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("double", "standin"),
        default="double",
        help="what plays a GPU: a double in Python, or real pycuda on a driver of our own (make test-device)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """What takes minutes to build is built before any test's time is taken."""
    if config.getoption("device") == "standin" and not hasattr(config, "workerinput"):
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(pytest.skip.Exception):  # tests skip themselves
            patch.syspath_prepend(str(DOUBLE))
            import standin

            standin.driver()


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def play_device(config: pytest.Config, patch: pytest.MonkeyPatch, folder: Path) -> type:
    """The class that plays a GPU, wherever ``Device`` is looked up. What it refused is in its ``complaints()``.

    folder: where kernels for the host and an engine cache are made
    """
    patch.syspath_prepend(str(DOUBLE))
    patch.setenv("DIINN_CACHE", str(folder / "cache"))
    from diinn.runtime import cuda
    from diinn.runtime.backends import cuda as fused
    from diinn.runtime.backends import device_backend, tensorrt
    from host_device import HostDevice

    kind: type = HostDevice
    if config.getoption("device") == "standin":
        import standin

        standin.load()
        standin.keep_cubins(patch)
        kind = standin.StandinDevice
    patch.setattr(kind, "folder", folder, raising=False)
    for module in (cuda, device_backend, tensorrt, fused):
        patch.setattr(module, "Device", kind)
    return kind


@pytest.fixture
def device_kind(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel_folder: Path
) -> Iterator[type]:
    """What plays a GPU; what a test has it refuse, the test must ask for by ``complaints()``."""
    kind = play_device(request.config, monkeypatch, kernel_folder)
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "cache"))
    yield kind
    assert kind.complaints() == []  # type: ignore[attr-defined]


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, device_kind: type) -> Iterator[pytest.MonkeyPatch]:
    """A machine with (the double of) TensorRT and a device, and an engine cache of its own."""
    monkeypatch.setenv("PYTHONPATH", str(DOUBLE))
    play("10.13.0.35", monkeypatch)
    yield monkeypatch
    sys.modules.pop("tensorrt", None)


def play(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the double be another version of TensorRT."""
    sys.modules.pop("tensorrt", None)
    monkeypatch.setenv("DIINN_DOUBLE_VERSION", version)
