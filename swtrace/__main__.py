"""``python -m swtrace`` is the ``swtrace`` command."""

from __future__ import annotations

from swtrace.cli import main

if __name__ == "__main__":
    main()
