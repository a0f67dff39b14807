"""Commands about files, one module each with a ``main``: options of their own, no trainer."""
