"""``lit-depth`` and ``python -m lit_depth``."""

import sys

from lit_depth import interrupts


def main() -> None:
    """Run one command. Signals are taken care of first: importing the rest takes seconds."""
    try:
        with interrupts.guarded():
            if sys.argv[1:] in ([], ["-h"], ["--help"]):
                from lit_depth.commands import overview

                print(overview())
                return
            from lit_depth.cli import main as run

            run()
    except SystemExit as stop:
        if stop.code == interrupts.TERMINATED:
            interrupts.end_now()
        raise


if __name__ == "__main__":
    main()
