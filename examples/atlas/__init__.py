"""Published claims about axes, rerun on trained models under nulls that hold their level.

`python -m examples.atlas` in the root of the repository; docs/atlas.md is what it prints.
"""
