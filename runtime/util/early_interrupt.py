"""Ctrl-C while a command is still importing what it needs."""

import signal


def quietly() -> None:
    """Have Ctrl-C end the process by the signal itself (130 in a shell), not by Python's trace, until it is handled."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
