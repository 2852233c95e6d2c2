"""How much memory there is, and a clear error before an output is allocated that cannot fit."""

from __future__ import annotations

import os

from diinn.runtime.errors import InputError

MIB = 2**20


def available() -> int | None:
    """Bytes the machine can still give, or None where that is not known."""
    try:
        with open("/proc/meminfo", encoding="ascii") as info:
            for line in info:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def held(process: int) -> int:
    """Bytes of memory a process holds, with its share of what others hold too; 0 where that is not known."""
    try:
        with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as parts:
            return next(int(line.split()[1]) * 1024 for line in parts if line.startswith("Pss:"))
    except (OSError, ValueError, StopIteration):
        return 0


def require(needed: int, what: str) -> None:
    """InputError if ``needed`` bytes are more than the machine has left."""
    free = available()
    if free is not None and needed > free:
        raise InputError(
            f"{what} needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free: ask for a smaller size"
        )
