"""Entry point of ``diinn-eval``: PyTorch takes seconds to import, and Ctrl-C must print no trace meanwhile."""

from diinn.runtime.util.early_interrupt import quietly


def main() -> int:
    """Entry point; the exit code."""
    quietly()
    from diinn.benchmarks.evaluate import main

    return main()
