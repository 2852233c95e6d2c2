"""``diinn-run``, called in the tests' own process."""

from pathlib import Path

import pytest
from diinn.runtime import main


@pytest.fixture
def run(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Calls main; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)

    def call(*args: object, model: object = bundle_path) -> tuple[int, str, str]:
        try:
            code = main.main([*map(str, args), "--model", str(model)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call
