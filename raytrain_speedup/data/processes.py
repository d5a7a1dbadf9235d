"""How the processes that read data start, whatever this Python's default is."""

import sys

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""Forked ones share the files that `Source.prepare` has read, and the modules (forkserver, the default from 3.14
on, has each read and import its own: 400 MB). The other systems' own libraries do not survive a fork."""
