"""The first thing a command does, before slow imports: Ctrl-C prints no trace there, as later on."""

from diinn.runtime.util.early_interrupt import quietly


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


def build() -> int:
    """Entry point of ``diinn-build``; the exit code."""
    quietly()
    from diinn.runtime.cli.build import main

    return main()


def ros2() -> int:
    """Entry point of ``diinn-ros2``; the exit code."""
    quietly()
    from diinn.runtime.cli.ros2 import main

    return main()
