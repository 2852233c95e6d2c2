"""Entry point of ``diinn-train``: PyTorch takes seconds to import, and Ctrl-C must print no trace meanwhile."""

from diinn.runtime.util.early_interrupt import quietly


def main() -> int:
    """Entry point; the exit code."""
    quietly()
    from diinn.train.main import main

    return main()
