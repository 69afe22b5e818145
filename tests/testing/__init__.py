"""The pytest plugin, tested with pytester."""
