"""``lit-depth`` and ``python -m lit_depth``."""

import sys

from lit_depth import interrupts


def main() -> None:
    """Run one command. Signals are taken care of first: importing the rest takes seconds."""
    with interrupts.guarded(resumable=interrupts.continues(sys.argv[1:]), exits=True):
        from lit_depth.cli import main as run

        run()


if __name__ == "__main__":
    main()
