"""What every command of the project shares: a parser and an ending, each one line long when something is wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from diinn.runtime.errors import DiinnError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it; exit code 2.

    hint: what to do about words that belong to no option
    """

    hint = ""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments") and self.hint:
            message += f": {self.hint}"
        self.exit(2, f"{self.prog}: {message}\n")


def guarded(name: str, remedy: str, work: Callable[[], int]) -> int:
    """The exit code of ``work``: its own, or 2 for bad input, 1 for a failure while running, 130 for Ctrl-C.

    remedy: what to install where a library is missing
    """
    try:
        return work()
    except DiinnError as error:
        message, code = str(error), error.exit_code
    except ImportError as error:
        message, code = f"{' '.join(str(error).split())}: {remedy}", 2
    except MemoryError:
        message, code = "out of memory: ask for a smaller size", 1
    except BrokenPipeError:  # whoever read our output is gone, and says so itself
        sys.stdout = None  # nothing is flushed to it at exit
        return 141
    except OSError as error:  # what no room foresaw: a name too long, a disk that went away
        where = f" {error.filename!r}" if error.filename else ""
        message, code = f"{error.strerror or error}:{where}", 1
    except KeyboardInterrupt:
        return 130
    print(f"{name}: {message}", file=sys.stderr)
    return code
