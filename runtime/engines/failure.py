"""Why TensorRT's build failed, as one line with what to do about it."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Any

from diinn.runtime.util.memory import MIB

# The command in full: engines are also built by commands without these options.
COMMAND = "diinn-build {bundle}"
LOWER = f"build it for fewer or smaller frames, {COMMAND} --cameras N --frame-sizes WIDTHxHEIGHT"
RAISE = f"build it with more, {COMMAND} --workspace N, above {{workspace}} MiB, or lower --cameras or --frame-sizes"
FREE = f"close other programs, or build it with less, {COMMAND} with lower --cameras, --frame-sizes or --workspace"
EXPORT = "export the bundle again, or use another version of TensorRT"
SHAPES = f"give {COMMAND} --frame-sizes and --cameras in place of shapes, or export the bundle again"
# Parts of TensorRT's messages in lower case, and what to do; the first match counts.
HINTS = (
    (r"within workspace limit", RAISE),
    (r"outofmemory \(requested size was (?P<bytes>\d+) bytes", RAISE),
    (r"device memory is insufficient|could not be allocated|due to insufficient memory", FREE),
    (r"out of memory|outofmemory|insufficient memory|memory allocation", FREE),
    (r"for turing", "engines are not for this GPU: use --backend cuda, or --backend onnxruntime"),
    (r"plugin not found|no importer|must have same input types|failed to parse|cannot be found", EXPORT),
    (r"missing dimensions in profile|dimension mismatch|invalid shape profile|kmax values", SHAPES),
    (r"driver version is insufficient|no cuda-capable device", "update the driver: see nvidia-smi for what it runs"),
)
# Its message when no tactic was left: the reason is in a warning, or nowhere.
MORE = f"try another --precision, or {COMMAND} --workspace N with more"
NOTHING = ((r"no implementation|could not find any implementation", MORE),)
MEMORY = (RAISE, FREE)
ELSE = "run it with --log-level debug"
NOISE = re.compile(r"--- (Begin|End) node ---|While parsing node number|catchCudaError|ScopedCudaStream")


def explained(
    code: int, report: dict[str, Any], output: str, workspace: int, bundle: str = "BUNDLE"
) -> tuple[str, bool]:
    """What failed, TensorRT's message that explains it, what to do; and whether memory was short.

    code: of the process, minus a signal's number; report: ``failed``, ``errors`` and ``warnings`` of the worker
    output: what the process printed; workspace: bytes that TensorRT was allowed
    bundle: path of what was built
    """
    command = COMMAND.format(bundle=bundle)
    if -code == signal.SIGKILL:
        advice = f"close other programs, or build it with less, {command} --workspace N"
        return f"the build was killed, most likely for memory: {advice}", True
    if code < 0:
        advice = f"try another --precision, or {command} --workspace N"
        return f"the build crashed ({signal_name(-code)}): {advice}", False
    text = line(report["failed"]) or "the build failed"
    word, advice = _why([text, *report["errors"]], report["warnings"], workspace)
    short = advice in MEMORY
    advice = advice.format(bundle=bundle, workspace=workspace // MIB)
    others = [w for w in map(line, [*report["errors"], *output.splitlines()[-1:]]) if w and not NOISE.search(w)]
    word = word or next(iter(others), "")
    if word and word not in text:
        text += f": {word[:300]}"
    return f"{text}: {advice}", short


def signal_name(number: int) -> str:
    """A signal's name; not all of a system's have one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _why(errors: Sequence[str], warnings: Sequence[str], workspace: int) -> tuple[str, str]:
    """The message that explains it, empty where none does, and the advice from ``HINTS``."""
    for lines, hints in ((errors, HINTS), (warnings, HINTS), (errors, NOTHING)):
        for words, advice in hints:
            for message in map(line, lines):
                found = re.search(words, message.lower())
                if found is None:
                    continue
                wanted = found.groupdict().get("bytes")
                if wanted and int(wanted) <= workspace:  # allowed, but not available
                    advice = FREE
                return message, advice
    return "", ELSE


def is_memory(message: str) -> bool:
    """Whether a line of TensorRT's is about memory."""
    return any(re.search(words, message.lower()) for words, advice in HINTS if advice in MEMORY)


def line(text: str) -> str:
    """A message on one line of readable length."""
    return " ".join(text.split())[:500]
