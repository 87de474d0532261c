"""The grammar that writes the demo's documents; `write.py` puts some of them into the package."""
