"""``diinn-run``, called in the tests' own process."""

import re
from pathlib import Path

import cv2
import pytest
from diinn.runtime.cli import run as command


@pytest.fixture
def run(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Calls main; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)

    def call(*args: object, model: object = bundle_path) -> tuple[int, str, str]:
        try:
            code = command.main([*map(str, args), "--model", str(model)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        if tuple(map(int, cv2.__version__.split(".")[:2])) < (
            4,
            6,
        ):  # its FFmpeg cannot be kept from printing lines of its own
            err = re.sub(r"^\[[\w,]+ @ 0x[0-9a-f]+\] .*\n", "", err, flags=re.MULTILINE)
        return code, out, err

    return call
