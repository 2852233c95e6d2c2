"""Where ``diinn-eval`` begins: PyTorch takes seconds to import, and Ctrl-C then prints no trace."""

from diinn.runtime.util.early_interrupt import quietly


def main() -> int:
    """Entry point; the exit code."""
    quietly()
    from diinn.benchmarks.evaluate import main

    return main()
