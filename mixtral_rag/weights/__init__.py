"""Model files: what is inside one, and whether it can be used."""
