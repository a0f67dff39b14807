"""``python -m lit_depth``."""

from lit_depth.cli import main

if __name__ == "__main__":
    main()
