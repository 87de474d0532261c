"""The command line: one file for each command, and `main`, which runs the one that is asked for.

A new command is a file with a `Command` in it, and its place in the list of `entry.py`.
"""

from basis_probe.cli.entry import main as main
