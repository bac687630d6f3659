"""Formats that a model is exported to: one file each, found by listing."""
