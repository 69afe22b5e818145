"""From rings, recordings and daemons to one observation."""
