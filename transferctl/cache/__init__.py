"""What frozen parts have computed, kept on disk by content: the same thing is not computed twice.

A product's rows are found by the product's key (all that a row depends on) and by the sample's (the SHA-256 of its
bytes), so whatever changes is another row. cache.py opens it, store.py one product's entry in it, rows.py reads and
writes rows; files are described in shards.py, the folder in entries.py. Nothing is imported here: the spec needs
settings.py alone.
"""
