"""Entry point of ``diinn-export``: PyTorch takes seconds to import, and Ctrl-C must print no trace meanwhile."""

from diinn.runtime.util.early_interrupt import quietly


def main() -> int:
    """Entry point; the exit code."""
    quietly()
    from diinn.export.to_onnx import main

    return main()
