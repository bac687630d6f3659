"""Trackers: each file tells a run to one experiment tracker. It runs in a process of its own (trackerprocess.py)."""
