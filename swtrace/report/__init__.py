"""One self-contained page about a recording."""
