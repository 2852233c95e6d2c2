"""Every TensorRT name that the code uses exists in every version it claims; found by walking its syntax trees.

``tensorrt_names.json`` holds what the code uses: name by class, and per version the ways to call it (null: not there).
Where a version lacks a name, the code must stand behind ``rules.constrained``, which is false for every way there.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SHARED
from diinn.runtime.engines import versions

SOURCES = [
    path
    for room in ("runtime", "export", "benchmarks")
    for path in sorted((ROOT / room).rglob("*.py"))
    if re.search(r"\btrt\.|import tensorrt as", path.read_text(encoding="utf-8"))
]
TABLE: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
VERSIONS = ("8.5.2.2", "8.6.1", "10.3.0", "10.13.0.35", "10.16.1.11", "11.4.0.106")
GUARDED = {"_hold_fp32"}  # functions called behind rules.constrained alone; a test holds them to it
Use = tuple[str, int, set[str], str]  # name, positional arguments (-1: not called), keywords, where


class Walker(ast.NodeVisitor):
    """Uses of TensorRT in one file. A variable's class is what it is annotated with, ``trt.X``."""

    def __init__(self, source: Path) -> None:
        self.where, self.uses, self.classes, self.guard = source.name, [], {}, ""
        self.calls: dict[int, ast.Call] = {}
        tree = ast.parse(source.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
                named = _trt_name(node.annotation)
                target = node.arg if isinstance(node, ast.arg) else _last(node.target)
                if named:
                    self.classes[target] = named
            if isinstance(node, ast.Call):
                self.calls[id(node.func)] = node
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before, self.guard = self.guard, "constrained" if node.name in GUARDED else self.guard
        for statement in node.body:  # annotations are no uses
            self.visit(statement)
        self.guard = before

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = _trt_name(node.value) or self.classes.get(_last(node.value), "")
        name = _trt_name(node) or (f"{owner}.{node.attr}" if owner else "")
        if name:
            call = self.calls.get(id(node))
            keywords = {k.arg for k in call.keywords if k.arg} if call else set()
            explicit_self = node.attr == "__init__"
            self.uses.append((name, len(call.args) - explicit_self if call else -1, keywords, self.guard))
        if not _trt_name(node):
            self.generic_visit(node)


def _trt_name(node: ast.AST) -> str:
    """``trt.A.b`` to ``A.b``."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed(parts)) if isinstance(node, ast.Name) and node.id == "trt" else ""


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def uses() -> list[tuple[str, int, set[str], str]]:
    found = [use for source in SOURCES for use in Walker(source).uses]
    found.append(("__version__", -1, set(), ""))  # asked of a module that is not called trt
    return found


def claimed(guard: str) -> Iterator[str]:
    """The versions in which code behind ``guard`` runs."""
    return (v for v in VERSIONS if not guard or any(way.constrained for way in versions.routes(v)))


def test_the_walk_finds_what_is_there() -> None:
    names = {name for name, *_ in uses()}
    assert {"Builder", "IBuilderConfig.set_flag", "BuilderFlag.TF32", "ILayer.precision"} <= names
    assert {
        "IExecutionContext.set_input_shape",
        "ICudaEngine.get_tensor_dtype",
        "Runtime.deserialize_cuda_engine",
    } <= names
    assert len(names) > 30


def test_every_name_exists_in_every_version_it_is_used_with() -> None:
    for name, arguments, keywords, guard in uses():
        assert name in TABLE, f"{name} is used and not in tensorrt_names.json"
        for version in claimed(guard):
            ways = TABLE[name][version]
            assert ways is not None, f"{name} is not in TensorRT {version}"
            if arguments >= 0 and ways:
                assert any(_takes(way, arguments, keywords) for way in ways), f"{name}{ways} in {version}"


def _takes(way: str, arguments: int, keywords: set[str]) -> bool:
    """Whether a signature like ``(input: str, min: Dims = 0)`` takes so many arguments and these keywords."""
    inner = re.sub(r"<[^>]*>", "default", way[1:-1])
    parameters = inner.split(", ") if inner else []
    names = [p.partition(":")[0] for p in parameters]
    required = sum("=" not in p for p in parameters)
    return required <= arguments + len(keywords) <= len(names) and keywords <= set(names)


def test_what_is_guarded_is_called_behind_its_guard_alone() -> None:
    for source in SOURCES:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        calls = {id(n) for n in ast.walk(tree) if isinstance(n, ast.Call) and _last(n.func) in GUARDED}
        behind = {
            id(call)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "rules.constrained" in ast.unparse(node.test)
            for call in ast.walk(node)
        }
        assert calls <= behind


@pytest.mark.parametrize("version", VERSIONS)
def test_flags_by_name_exist_in_their_versions(version: str) -> None:
    ways = versions.routes(version)
    wanted = [f"NetworkDefinitionCreationFlag.{name}" for way in ways for name in way.network_flags]
    wanted += [f"BuilderFlag.{name}" for way in ways for names in way.builder_flags.values() for name in names]
    wanted += [f"TacticSource.{name}" for name in versions.tactics(version)]
    for name in wanted:
        assert TABLE[name][version] is not None, f"{name} is not in TensorRT {version}"


def test_the_walk_sees_a_name_that_a_version_lacks(tmp_path: Path) -> None:
    source = tmp_path / "code.py"
    source.write_text("def f(layer: trt.ILayer) -> None:\n    layer.precision = 1\n    trt.BuilderFlag.FP16\n")
    found = {name for name, *_ in Walker(source).uses}
    assert found == {"ILayer.precision", "BuilderFlag.FP16"}
    assert TABLE["ILayer.precision"]["11.4.0.106"] is None
    assert TABLE["BuilderFlag.FP16"]["11.4.0.106"] is None


def from_dumps(folder: Path, names: set[str]) -> dict[str, dict[str, Any]]:
    """The table, out of whole dumps of the Python API."""
    table: dict[str, dict[str, Any]] = {}
    for version in VERSIONS:
        api = json.loads((folder / f"{version}.json").read_text())
        for name in sorted(names):
            table.setdefault(name, {})[version] = _ways(api, name)
    return table


def _ways(api: dict[str, Any], name: str) -> list[str] | None:
    owner, _, member = name.partition(".")
    if not member:
        if owner in api["classes"]:
            found = api["classes"][owner]["methods"].get("__init__", [])
        else:
            known = owner in api["functions"] or owner in api["constants"] or owner == "__version__"
            return [] if known else None
    else:
        described = api["classes"].get(owner)
        if described is None or member not in described["members"]:
            return None
        found = described["methods"].get(member, [])
    return [re.sub(r"^\w+\((self: \w+(, )?)?(.*)\) -> .*$", r"(\3)", way) for way in found]


def test_the_table_is_what_the_dumps_say() -> None:
    folder = SHARED / "trt_api"
    if not folder.is_dir():
        pytest.skip(f"no dumps of TensorRT's API: {folder} is not there")
    assert from_dumps(folder, set(TABLE)) == TABLE
