"""The pages of docs/: what they say of the code, their examples, and that they build without a warning."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from diinn import runtime

DOCS = ROOT / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout
    for name in re.findall(r"^(\S+\.png):", done.stdout, re.MULTILINE):
        assert (tmp_path / name).stat().st_size > 0


def test_examples_are_short_and_listed() -> None:
    page = (DOCS / "examples.md").read_text(encoding="utf-8")
    listed = re.findall(r"\(examples/(\w+\.py)\)", page)
    assert listed == [script.name for script in EXAMPLES]
    assert all(10 <= len(script.read_text(encoding="utf-8").splitlines()) <= 40 for script in EXAMPLES)


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto\w+:: diinn\.runtime\.([\w.]+)$", page, re.MULTILINE)
    assert {name for name in listed if "." not in name} == set(runtime.__all__)
    assert {"backends.base.Backend", "sources.base.Source"} <= set(listed)


def test_every_page_is_in_the_contents() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    contents = "".join(re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL))
    listed = set(re.findall(r"^[\w-]+$", contents, re.MULTILINE))
    assert listed == {page.stem for page in DOCS.glob("*.md")} - {"index"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in sorted(listed) if f"](docs/{name}.md)" not in readme] == []


def test_the_format_of_shared_memory_is_that_of_the_code() -> None:
    from diinn.runtime.sinks import shared_memory

    page = (DOCS / "shared-memory-format.md").read_text(encoding="utf-8")
    written = re.findall(r"^\| (\w+) \| (\d+) \| (\S+) \|", page, re.MULTILINE)
    stated = re.findall(r"^(\w+) +(\d+) (\S+) ", shared_memory.__doc__ or "", re.MULTILINE)
    assert written == stated
    assert len(written) == 19


def test_troubleshooting_has_the_words_of_our_messages() -> None:
    """Each message of its tables, between the … for names and numbers, is in the code."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    code = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))  # messages go over lines
        for room in ("runtime", "train", "export")
        for path in (ROOT / room).rglob("*.py")
    )
    cells = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r"`([^`-][^`]*)`", cell)]
    assert len(messages) > 50
    missing = [m for m in messages if any(part.strip() not in code for part in m.split("…"))]
    assert missing == []


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """What ``make docs`` does."""
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("no Sphinx here: pip install 'diinn[docs]'")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--builder", "html", "-c", str(DOCS)]
    assert " ".join(options[:5]) in (ROOT / "Makefile").read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(ROOT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "docs" / "api.html").read_text(encoding="utf-8")
    assert 'id="diinn.runtime.SuperResolver.resize"' in reference
    styles = [*tmp_path.rglob("*.css"), *tmp_path.rglob("*.html")]
    fetched = r'<(?:script|link|img)[^>]*(?:src|href)="https?:|@import[^;]*https?:|url\(["\']?https?:'
    assert [p.name for p in styles if re.search(fetched, p.read_text(encoding="utf-8"))] == []
