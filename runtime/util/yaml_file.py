"""The one reader of YAML in the runtime: mappings, lists and five kinds of scalars, in files of limited size.

Files come from anywhere. There are no aliases (which can expand to gigabytes), no dates, numbers to the base of 60 or
binary data, no duplicate keys, and no control characters, which could change a terminal. Whole numbers are decimal and
have no leading zeros, so that ``name: 007`` stays text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from diinn.runtime.errors import InputError
from diinn.runtime.util import reading

MOST_BYTES = 2**18  # PyYAML takes seconds for more
MOST_DEPTH = 50
_TAG = "tag:yaml.org,2002:"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_TRUE = ("true", "yes", "on")
# By kind: how a scalar without quotes looks, and the characters it may begin with.
_KINDS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"(?i:true|yes|on|false|no|off)", list("tTyYoOfFnN")),
    "int": (r"[-+]?(?:0|[1-9][0-9]{0,17})", list("-+0123456789")),
    "float": (
        r"[-+]?(?:(?:[0-9]{1,40}\.[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,4})?|[0-9]{1,40}[eE][-+]?[0-9]{1,4}"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|Nan|NAN)",
        list("-+0123456789."),
    ),
}
_VALUES: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() in _TRUE,
    "int": int,
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
    "str": str,
}


class _RefusedError(yaml.MarkedYAMLError):
    """YAML, but more than is taken here."""


class _Loader(yaml.SafeLoader):
    """Builds nodes, no deeper than ``MOST_DEPTH``, of the tags above alone."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  none of SafeLoader's
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise _RefusedError(None, None, "aliases (*name) are not taken: write the value out", mark)
        if self.depth >= MOST_DEPTH:
            raise _RefusedError(None, None, f"it is nested more than {MOST_DEPTH} deep", mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


for _kind, (_pattern, _begins) in _KINDS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _begins)


def read(path: Path, what: str, *, first: bool = False) -> Any:
    """The content of a YAML file: dict (keys are text), list, str, int, float, bool or None; None of an empty one.

    Args:
        path: The file.
        what: What it is, for messages.
        first: Whether more documents may follow (after ``---``), which are ignored.

    Raises:
        InputError: One line with file, line and column, that quotes none of the file's values, which may be secret.
    """
    return parse(reading.text(path, MOST_BYTES, what), str(path), first=first)


def parse(text: str, name: str, *, first: bool = False) -> Any:
    """The same of a file's ``text``; ``name`` is for messages."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = _first(loader) if first else loader.get_single_node()
        return None if node is None else _value(node)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{name!r} is not YAML, line {line}: a control character stands there") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = "" if isinstance(error, _RefusedError) else " is not YAML"
        problem = error.problem or error.context or "unreadable"
        if problem == "but found another document":
            problem = "a second document begins here, where one is wanted"
        raise InputError(f"{name!r}{what}{where}: {problem[:100]}") from None
    except (yaml.YAMLError, ValueError, OverflowError):  # "\UFFFFFFFF", which is no character
        line = loader.line + 1 if loader is not None else 1
        raise InputError(f"{name!r} is not YAML, line {line}: a character that does not exist") from None
    finally:
        if loader is not None:
            loader.dispose()


def _first(loader: _Loader) -> yaml.Node | None:
    return loader.get_node() if loader.check_node() else None


def _value(node: yaml.Node) -> Any:
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return dict(_pairs(node.value))
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode) and kind in _VALUES:
        return _scalar(node, kind)
    tag = node.tag.replace(_TAG, "!!")[:40]
    raise _RefusedError(None, None, f"the tag {tag!r} is not taken for what stands there", node.start_mark)


def _scalar(node: yaml.ScalarNode, kind: str) -> Any:
    text: str = node.value
    if _CONTROL.search(text):
        raise _RefusedError(None, None, "a control character stands in this text", node.start_mark)
    if kind in _KINDS and not re.fullmatch(_KINDS[kind][0], text):  # by its tag: !!int abc
        raise _RefusedError(None, None, f"this is no {kind}, as its tag says", node.start_mark)
    return _VALUES[kind](text)


def _pairs(nodes: Iterable[tuple[yaml.Node, yaml.Node]]) -> Iterable[tuple[str, Any]]:
    """Keys and values, each key once; PyYAML would silently take the last of a duplicate key."""
    seen: set[str] = set()
    for key, value in nodes:
        if not isinstance(key, yaml.ScalarNode):
            raise _RefusedError(None, None, "a key is to be text", key.start_mark)
        name = str(_scalar(key, "str"))
        if name in seen:
            raise _RefusedError(None, None, "a key stands here twice", key.start_mark)
        seen.add(name)
        yield name, _value(value)
