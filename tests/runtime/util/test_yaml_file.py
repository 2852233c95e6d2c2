"""The runtime's YAML: what people write is read, anything else is one line with a place, soon."""

import contextlib
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
from diinn.runtime import InputError
from diinn.runtime.util import yaml_file


def parse(text: str) -> Any:
    return yaml_file.parse(text, "a.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("a: 1\nb: [2.5, -3, 1e-5, .5, +1.E3]", {"a": 1, "b": [2.5, -3, 1e-5, 0.5, 1000.0]}),
        ("{a: yes, b: False, c: ~, d: , e: null}", {"a": True, "b": False, "c": None, "d": None, "e": None}),
        ("a: [2001-01-01, 12:30:00, 007, 0x1f, 1_000]", {"a": ["2001-01-01", "12:30:00", "007", "0x1f", "1_000"]}),
        ("a: 'x: y'\nb: \"caf\\xe9\"\nc: |\n  d\n  e", {"a": "x: y", "b": "café", "c": "d\ne"}),
        ("1: a\ntrue: b\n<<: c\n=: d", {"1": "a", "true": "b", "<<": "c", "=": "d"}),
        ("a: .inf\nb: -.Inf", {"a": math.inf, "b": -math.inf}),
        ("a: !!str 7\nb: !!int 7\nc: ! 8", {"a": "7", "b": 7, "c": 8}),
        ("a: " + "9" * 5000, {"a": "9" * 5000}),
        ("\ufeffa: 日本", {"a": "日本"}),
    ],
)  # fmt: skip
def test_mappings_lists_and_five_kinds_of_scalars(text: str, value: object) -> None:
    assert parse(text) == value


BAD = {
    "a tag that lies": ("x: 1\na: !!int abc", "'a.yaml', line 2, column 4: this is no int"),
    "an endless float": ("a: !!float 1e99999", "line 1, column 4: this is no float"),
    "a maybe": ("a: !!bool maybe", "this is no bool"),
    "binary": ("a: !!binary abcd", "the tag '!!binary' is not taken"),
    "a set": ("!!set {a, b}", "the tag '!!set'"),
    "python": ("a: !!python/object/apply:os.system [x]", "the tag '!!python/object/apply:os.system'"),
    "a list that is none": ("a: !!seq {}", "the tag '!!seq'"),
    "an alias": ("a: &a [1]\nb: *a", "'a.yaml', line 2, column 4: aliases (*name) are not taken"),
    "itself": ("&a [*a]", "aliases"),
    "an alias as key": ("? &a b\n: c\n*a : d", "line 3, column 1: aliases"),
    "merged": ("x: &x {a: 1}\ny: {<<: *x}", "line 2, column 9: aliases"),
    "brackets": ("[" * 3000, "line 1, column 51: it is nested more than 50 deep"),
    "braces": ("{" * 3000, "nested more than 50 deep"),
    "dashes": ("- " * 3000, "nested more than 50 deep"),
    "questions": ("? " * 3000, "nested more than 50 deep"),
    "indented": ("".join(" " * i + "a:\n" for i in range(300)), "line 50, column 50: it is nested"),
    "a list as key": ("? [a]\n: b", "a key is to be text"),
    "twice": ("a: 1\nb: 2\na: 3", "line 3, column 1: a key stands here twice"),
    "two documents": ("a: 1\n---\nb: 2", "line 2, column 1: a second document"),
    "an escape": ('a: "\\e[31m"', "line 1, column 4: a control character stands in this text"),
    "an escape in a key": ('"\\e[31m": a', "line 1, column 1: a control character"),
    "a nul": ('a: "x\\0"', "a control character"),
    "raw": ("a: 1\nb: \x07", "is not YAML, line 2: a control character"),
    "half a pair": ('a: "\\uD800"', "a control character"),
    "no such character": ('x: 1\na: "\\UFFFFFFFF"', "is not YAML, line 2: a character that does not exist"),
    "open": ("a: 'x", "is not YAML, line 1"),
    "another YAML": ("%YAML 9.9\n---\na: 1", "is not YAML, line 1, column 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_anything_else_is_one_line_with_its_place(case: str) -> None:
    text, words = BAD[case]
    with pytest.raises(InputError) as error:
        parse(text)
    assert words in str(error.value)
    assert str(error.value).isprintable()


def bomb() -> str:
    """Nine levels of nine references each: 387 million words."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    return "\n".join(lines)


@pytest.mark.parametrize("text", [bomb(), "x: " + "[" * 100_000, "&a [" + "*a, " * 1000 + "]", "a: " + "9" * 200_000])
def test_bombs_are_refused_or_text_at_once(text: str) -> None:
    begun = time.process_time()
    with contextlib.suppress(InputError):
        assert isinstance(parse(text)["a"], str)
    assert time.process_time() - begun < 5


def test_a_file_larger_than_people_write_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n" * 100_000)
    with pytest.raises(InputError, match=r"cannot read cameras .*a\.yaml': it is larger than 256 KiB"):
        yaml_file.read(path, "cameras")


def test_of_an_echo_that_goes_on_the_first_document_is_read() -> None:
    assert yaml_file.parse("a: 1\n---\na: 2\n---\na: [", "a.yaml", first=True) == {"a": 1}


def refusal(text: str) -> str:
    """Why it is refused, empty if it is not."""
    try:
        parse(text)
    except InputError as error:
        return str(error)
    return ""


def test_mutated_files_are_values_or_one_line() -> None:
    text = "cameras:\n  - name: front\n    uri: rtsp://u:secret@h/x\n    rate: 15.5\n    views: {a: 'full:64x48'}\n"
    rng = random.Random(3)
    pieces = [*"\0\x1b[{\t'\"\\%|é\ud800", "!!", "&a ", "*a", "- ", ": ", "---\n", "? "]
    refusals = []
    for _ in range(400):
        at = rng.randrange(len(text))
        changed = text[:at] + rng.choice(pieces) * rng.randrange(1, 4) + text[at + rng.randrange(4) :]
        refusals.append(refusal(changed))
    assert sum(map(bool, refusals)) > 50
    assert all(line.isprintable() and "secret" not in line for line in refusals)
