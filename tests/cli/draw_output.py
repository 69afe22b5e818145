"""Turn a terminal's output (stdin, with its colours) into an SVG (stdout) whose text stays text.

``swtrace demo | python tests/cli/draw_output.py "swtrace demo" > docs/images/demo.svg``
"""

from __future__ import annotations

import io
import re
import sys

from rich.console import Console
from rich.text import Text

WIDTH = 100


def main() -> None:
    """Convert."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for line in sys.stdin.read().strip("\n").splitlines():
        console.print(Text.from_ansi(line))
    svg = console.export_svg(title=sys.argv[1])
    # No font from elsewhere: a page that shows this must not call anybody.
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)
    sys.stdout.write(svg.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas"))


if __name__ == "__main__":
    main()
