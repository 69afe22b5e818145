"""The five views. Each draws lines of cells from a picture; none asks a source for anything."""
