"""The first thing a command does, before what takes time to import: Ctrl-C there says nothing, as later on."""

import signal


def quietly() -> None:
    """Have Ctrl-C end the process by the signal itself (130 in a shell), not by Python's trace, until it is handled."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def run() -> int:
    """Entry point of ``diinn-run``; the exit code."""
    quietly()
    from diinn.runtime.cli.run import main

    return main()


def doctor() -> int:
    """Entry point of ``diinn-doctor``; the exit code."""
    quietly()
    from diinn.runtime.cli.doctor import main

    return main()
