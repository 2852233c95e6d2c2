"""What every command of the project shares: a parser and an ending, each one line long when something is wrong."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.util.text import redacted, shown

log = logging.getLogger(__name__)


class Parser(argparse.ArgumentParser):
    """Reports what is wrong in one line, without the usage before it; exit code 2.

    hint: what to do about words that belong to no option
    """

    hint = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)  # a typing error must not select an option
        if options.get("description"):  # a module's docstring
            options["description"] = options["description"].replace("``", "")
        super().__init__(*args, **options)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.nargs != argparse.PARSER and "" in arg_strings:
            raise argparse.ArgumentError(action, "an empty word, '': is a variable of your script unset?")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            words = message.partition(": ")[2].split()
            if not words:
                self.exit(2, f"{self.prog}: an empty argument, '': is a variable of your script unset?\n")
            word = words[0].partition("=")[0]
            near = difflib.get_close_matches(word, self._option_string_actions, n=1) if word.startswith("-") else []
            hint = f"did you mean {near[0]}?" if near else self.hint
            message += f": {hint}" if hint else ""
        self.exit(2, f"{self.prog}: {shown(message)}\n")


def check_output(path: Path | None, *endings: str) -> None:
    """InputError unless a file can be written to ``path``, with one of ``endings`` if any are given.

    To be called before the work whose result it is to hold.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    if path.exists() and not path.is_file():  # a pipe, /dev/stderr
        return
    if not path.parent.is_dir():
        raise InputError(f"cannot write {str(path)!r}: no folder {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {str(path)!r}: the folder is not writable")
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"cannot write {str(path)!r}: name it {path.stem}{endings[0]}")


class _Line(logging.Formatter):
    """The format of log lines where a command sets no other."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def guarded(
    name: str, remedy: str, work: Callable[[], int], report: Callable[[str], None] = _to_stderr, hint: str = ""
) -> int:
    """The exit code of ``work``: its own, or 2 for bad input, 1 for a failure while running, 130 for Ctrl-C.

    remedy: what to install where a library is missing; report: prints a message; hint: how to see the trace of an
        unexpected error
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Line())
    try:
        return work()
    except DiinnError as error:
        message, code = str(error), error.exit_code
    except ImportError as error:
        message, code = f"{' '.join(str(error).split())}: {remedy}", 2
    except MemoryError:
        message, code = "out of memory: ask for a smaller size", 1
    except BrokenPipeError:  # the reader of our output is gone, and reports that itself
        sys.stdout = None  # nothing is flushed to it at exit
        return 141
    except OSError as error:  # not handled elsewhere: a name too long, a disk that went away
        where = f" {error.filename!r}" if error.filename else ""
        message, code = f"{error.strerror or error}:{where}", 1
        trace(error)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # a bug of ours or of a library
        message, code = unforeseen(error, hint), 1
        trace(error)
    report(f"{name}: {shown(message)}")
    return code


def unforeseen(error: BaseException, hint: str = "") -> str:
    """One line about an unexpected error: what and where it is."""
    what = redacted(" ".join(str(error).split()))[:300]  # redacted before it is cut
    if isinstance(error, RuntimeError) and "start new thread" in what:
        return "cannot start a thread: allow more memory (ulimit -v) or processes (ulimit -u), or give fewer --threads"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{where}: {what or 'no reason given'}{hint and f'; {hint}'}"


def trace(error: BaseException) -> None:
    """An error's trace to the log, at level debug, a line at a time."""
    if log.isEnabledFor(logging.DEBUG):
        for part in traceback.format_exception(error):
            for line in part.splitlines():
                log.debug("%s", line)
