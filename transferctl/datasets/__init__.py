"""Kinds of labelled data: one file a kind."""
