"""The commands: thin, each imports its verb when it runs. Nothing here imports torch."""
