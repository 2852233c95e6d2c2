"""The one exception tree of the project.

DiinnError                something went wrong while running (exit code 1)
└── InputError            what the user gave is wrong (exit code 2)
    ├── BundleError       a bundle is missing, damaged or of another version
    ├── CheckpointError   a checkpoint is missing, damaged or of another architecture
    └── SourceError       a camera, video or image cannot be opened or decoded

A message is one line: what is wrong, with the value, and what to do about it.
"""

import difflib
from collections.abc import Iterable


class DiinnError(Exception):
    """Base of every error the project raises on purpose.

    Attributes:
        exit_code: What a command that ends with this error returns to the shell: 1, or 2 for bad input.
    """

    exit_code = 1


class InputError(DiinnError):
    """An argument, file or value from the user cannot be used."""

    exit_code = 2


class BundleError(InputError):
    """A bundle is missing, damaged or of a version this runtime does not read."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, unsafe or of an architecture this project does not build."""


class SourceError(InputError):
    """A camera, video or image cannot be opened or decoded."""


class OutOfMemory(DiinnError):
    """A device has too little memory left for what was to be allocated."""


def unknown(what: str, name: object, valid: Iterable[str]) -> str:
    """The message for a name that is not among ``valid``, with the nearest one that is."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names) or '(none)'}"
    return f"unknown {what} {name!r}: {hint}"
