"""``diinn-bench``: one command for all of them."""

from pathlib import Path

import pytest
from conftest import ROOT
from diinn.benchmarks.__main__ import BENCHMARKS, main

Output = pytest.CaptureFixture[str]


def test_it_lists_every_benchmark_there_is(capsys: Output) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    files = (path for path in (ROOT / "benchmarks").glob("*.py") if "def parser()" in path.read_text(encoding="utf-8"))
    assert {path.stem for path in files} - {"evaluate", "__main__"} == {*BENCHMARKS}
    assert all(f"\n  {name} " in listed for name in BENCHMARKS)


def test_what_is_wrong_is_one_line(capsys: Output, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["memory", "--modle", "x"])
    wrong = "diinn-bench memory: unrecognized arguments: --modle x: did you mean --model?\n"
    assert capsys.readouterr().err == wrong
    assert main(["spede"]) == 2
    assert capsys.readouterr().err.startswith("diinn-bench: unknown benchmark 'spede': ")
    for name in ("picture", "memory"):
        assert main([name, "--model", str(tmp_path / "none")]) == 2
        assert capsys.readouterr().err.startswith(f"diinn-bench {name}: no bundle")
