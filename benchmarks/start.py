"""Entry points of commands: PyTorch takes seconds to import, and Ctrl-C must print no trace meanwhile."""

from diinn.runtime.util.early_interrupt import quietly


def evaluate() -> int:
    """Entry point of ``diinn-eval``; the exit code."""
    quietly()
    from diinn.benchmarks.evaluate import main

    return main()


def main() -> int:
    """Entry point of ``diinn-bench``; the exit code."""
    quietly()
    from diinn.benchmarks.__main__ import main

    return main()
