"""The five views. Each draws lines of cells from a picture; none reads a source."""
