"""Sphinx's settings: pages in Markdown, the Python reference from docstrings, nothing from elsewhere.

The sources are the repository itself, so that pages may link to results and code: ``sphinx -c docs . build/docs``.
"""

from configparser import ConfigParser
from pathlib import Path

from sphinx.application import Sphinx

_setup = ConfigParser()
_setup.read(Path(__file__).resolve().parent.parent / "setup.cfg")

project = _setup["metadata"]["name"]
release = version = _setup["metadata"]["version"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "benchmarks/results/*.md"]
exclude_patterns = [".*", "build", "dist", "out", "runs", "tests", "train", "export", "runtime"]  # not looked through
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"  # the system's own fonts, no scripts of others
html_title = project
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3  # links to titles, as GitHub makes them

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
# Arrays and the like by the names the code gives them.
_ALIASES = ("Denoise", "Float32", "Float64", "Image", "Int32", "Rect", "Size", "UInt8", "npt.DTypeLike")
autodoc_type_aliases = {name: name.removeprefix("npt.") for name in _ALIASES}
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True


def _first_page(app: Sphinx, error: Exception | None) -> None:
    page = f"{root_doc}.html"
    text = f'<!doctype html><meta http-equiv="refresh" content="0; url={page}"><a href="{page}">{project}</a>\n'
    (Path(app.outdir) / "index.html").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Called by Sphinx: what is opened first is build/docs/index.html."""
    app.connect("build-finished", _first_page)
