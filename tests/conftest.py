"""Small real things for the tests: a checkpoint, its bundle, photographs where they are at hand."""

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

# What a shell, a CI service or a used machine may have set, and the tests set themselves where they want it.
PERSONAL = ("DIINN_", "PYTHONWARNINGS", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "XDG_CACHE_HOME")
PERSONAL += ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
for name in [name for name in os.environ if name.startswith(PERSONAL)]:
    del os.environ[name]
# A script's "make test &" has them ignored, and whatever the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGQUIT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)

os.environ |= {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # read when cv2 is imported; as diinn-run

import cv2
import numpy as np
import pytest
import tiny
from hypothesis import settings

# Files of tests that cannot begin without a library: ``make test-oldest`` has the runtime's alone.
NEEDS = {
    "torch": [
        f"runtime/{name}.py"
        for name in (
            "backends/test_fused",
            "backends/test_gpu_base",
            "backends/test_tensorrt",
            "engines/test_nvidia_builder",
        )
    ],
    "selenium": ["runtime/sinks/preview/test_page.py"],
}
collect_ignore = [file for library, files in NEEDS.items() if not importlib.util.find_spec(library) for file in files]
pytest_plugins = ("served", "commanded", "rosbus")
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
FAKES = ROOT / "tests" / "fakes"
BUILDER = ROOT / "tests" / "builder"
PREPARED = ROOT / "build" / "tiny"  # bundles, see tiny.py


@pytest.fixture(autouse=True, scope="session")
def fresh_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that earlier work left on this machine is found: no cache, no kernels of ``make kernels``."""
    from diinn.runtime.cpu import compiler as cpu_compiler
    from diinn.runtime.gpu import compiler

    empty = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIINN_CACHE", str(empty / "engines"))
        patch.setenv("DIINN_CPU_ENCODER", "onnxruntime")  # in fp32 on every processor
        for maker in (compiler, cpu_compiler):
            patch.setattr(maker, "PREBUILT", empty / "prebuilt")
        yield


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    """What a command did to loggers in this process is undone: levels (a benchmark silences ``diinn``), and
    handlers that write to a console which is gone."""
    root = logging.getLogger()
    levels, handlers = [(logger, logger.level) for logger in (root, logging.getLogger("diinn"))], [*root.handlers]
    yield
    for logger, level in levels:
        logger.setLevel(level)
    for handler in [*root.handlers]:
        if handler not in handlers:
            root.removeHandler(handler)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without TensorRT."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no photographs: {folder} is not there")
    return folder


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a dial and random weights, as a checkpoint of ours."""
    pytest.importorskip("torch", reason="no PyTorch: it makes checkpoints")
    return tiny.checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.pth")


@pytest.fixture(scope="session")
def bundle_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model's bundle; made beforehand where there is no PyTorch (``make test-oldest``)."""
    folder = tmp_path_factory.mktemp("bundle")
    return _prepared("tiny.diinn", folder) or tiny.bundle(request.getfixturevalue("checkpoint_path"), folder)


@pytest.fixture(scope="session")
def dialless_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of version 2, which knows no dial, of the same model without its dial."""
    folder = tmp_path_factory.mktemp("dialless")
    return _prepared("plain.diinn", folder) or tiny.dialless(request.getfixturevalue("checkpoint_path"), folder)


def _prepared(name: str, folder: Path) -> Path | None:
    """A copy in ``folder`` of what ``tests/tiny.py`` made; None where PyTorch makes it anew."""
    if importlib.util.find_spec("torch") is not None:
        return None
    if not (PREPARED / name).is_dir():
        pytest.skip(f"no PyTorch and no {PREPARED / name}: python tests/tiny.py {PREPARED} makes it where PyTorch is")
    return shutil.copytree(PREPARED / name, folder / name)


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A frame with structure, uint8 [60, 80, 3] BGR."""
    from diinn.runtime.sources import demo

    return demo.frame(3.0, (80, 60))


@pytest.fixture
def photo_path(tmp_path: Path, photo: np.ndarray) -> Path:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), photo)
    return path


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures to train on."""
    from diinn.runtime.sources import demo

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
        choices=("fake", "standin"),
        default="fake",
        help="what plays a GPU: a fake in Python, or real pycuda on a driver of our own (make test-device)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """What takes minutes to build is built before any test's time is taken."""
    if config.getoption("device") == "standin" and not hasattr(config, "workerinput"):
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(pytest.skip.Exception):  # tests skip themselves
            patch.syspath_prepend(str(FAKES))
            import standin

            standin.driver()


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def play_device(config: pytest.Config, patch: pytest.MonkeyPatch, folder: Path) -> type:
    """The class that plays a GPU, wherever ``Device`` is looked up. What it refused is in its ``complaints()``.

    folder: where kernels for the host and an engine cache are made
    """
    patch.syspath_prepend(str(FAKES))
    patch.setenv("DIINN_CACHE", str(folder / "cache"))
    from diinn.runtime.backends import fused, gpu_base, tensorrt
    from diinn.runtime.gpu import device
    from host_device import HostDevice

    kind: type = HostDevice
    if config.getoption("device") == "standin":
        import standin

        standin.load()
        standin.keep_cubins(patch)
        kind = standin.StandinDevice
    patch.setattr(kind, "folder", folder, raising=False)
    for module in (device, gpu_base, tensorrt, fused):
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
    monkeypatch.setenv("PYTHONPATH", str(FAKES), prepend=os.pathsep)
    play("10.13.0.35", monkeypatch)
    yield monkeypatch
    sys.modules.pop("tensorrt", None)


@pytest.fixture
def builder(trt: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The same machine with NVIDIA's real parser and builder in place of the double's; it cannot run what it builds."""
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip(
            "no builder of NVIDIA's here: pip install 'diinn[nvidia-builder]' (x86-64 Linux, Python 3.10 to 3.14)"
        )
    return real_builder(trt, BUILDER)


def real_builder(monkeypatch: pytest.MonkeyPatch, *folders: Path, version: str = "11.4.0.106") -> pytest.MonkeyPatch:
    """Have the shim in ``tests/builder`` be TensorRT, with what else stands in ``folders``."""
    for folder in reversed(folders):
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    for name, value in (("AS", version), ("TARGETS", "SM86,SM89,SM120")):
        monkeypatch.setenv(f"DIINN_BUILDER_{name}", value)
    sys.modules.pop("tensorrt", None)
    return monkeypatch


OLDER = ("tensorrt-rtx-cu12-libs==1.4.0.76", "tensorrt-rtx-cu12-bindings==1.4.0.76")


@pytest.fixture(scope="session")
def older_folder() -> Path:
    """NVIDIA's builder of the API of TensorRT 10, installed aside once: both versions bear one module's name."""
    folder = ROOT / "build" / f"tensorrt-rtx-1.4.0.76-{sysconfig.get_config_var('SOABI')}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--timeout", "20"]
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            draft = str(Path(draft) / "site")
            done = subprocess.run(
                [*command, "--no-deps", "--target", draft, *OLDER], capture_output=True, text=True, check=False
            )
            with contextlib.suppress(OSError):  # another test process was first
                if done.returncode == 0:
                    Path(draft).rename(folder)
    if not folder.exists():
        pytest.skip(f"no older builder of NVIDIA's: pip install --no-deps --target {folder} {' '.join(OLDER)}")
    return folder


@pytest.fixture
def older(builder: pytest.MonkeyPatch, older_folder: Path) -> pytest.MonkeyPatch:
    """``builder`` with the one of the API of TensorRT 10."""
    return real_builder(builder, BUILDER, older_folder, version="10.13.0.35")


def play(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the double be another version of TensorRT."""
    sys.modules.pop("tensorrt", None)
    monkeypatch.setenv("DIINN_DOUBLE_VERSION", version)
