"""Where pretrained networks come from: one file a library."""
