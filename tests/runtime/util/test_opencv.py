"""The OpenCV a robot brings: old ones do or are refused in one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from diinn.runtime.errors import InputError
from diinn.runtime.sources.capture import CaptureRequest, open_capture
from diinn.runtime.sources.pixel_formats import BAYER
from diinn.runtime.util.opencv import check_version
from served import Served


def test_versions_that_lack_what_is_used_are_refused() -> None:
    for version in ("4.5.4", "4.5.4-dev", "4.6.0", "4.10.0", "5.0.0-pre"):
        check_version(version)
    for version in ("3.4.18", "4.2.0", "4.5.3"):
        with pytest.raises(InputError, match=rf"OpenCV {version} is too old, 4.5.4 or later is wanted: pip install"):
            check_version(version)


def test_a_network_camera_opens_where_opencv_knows_no_number_of_threads(
    mjpeg: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenCV 4.6, which opens nothing where it is given a property that it does not know."""
    monkeypatch.delattr(cv2, "CAP_PROP_N_THREADS", raising=False)
    opened = open_capture(CaptureRequest(mjpeg("64x48").url, cv2.CAP_FFMPEG))
    assert opened.read()[0].shape == (48, 64, 3)


def test_patterns_of_sensors_bear_names_that_every_version_knows() -> None:
    for name, code in BAYER.items():
        newer = getattr(cv2, f"COLOR_Bayer{name.removeprefix('bayer-').upper()}2BGR", code)  # from 4.5.5 on
        assert code == newer, name


def test_an_opencv_built_for_another_numpy_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text(
        "import sys\nprint('A module that was compiled using NumPy 1.x cannot be run in\\n', file=sys.stderr)\n"
        "raise ImportError('numpy.core.multiarray failed to import')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    for arguments in (["run", "--camera", "demo", "--output", "none"], ["doctor"]):
        command = [sys.executable, "-m", f"diinn.runtime.cli.{arguments[0]}", *arguments[1:]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert "this OpenCV was built for another NumPy than" in done.stderr
        assert "pip install 'numpy<2'" in done.stderr
