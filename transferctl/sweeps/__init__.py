"""A sweep, part by part: space.py reads what is swept, methods.py and study.py say which settings are tried, specs.py
makes the members' specs, beforehand.py looks at what they read and networks.py at what they name of a network,
schedule.py says who may start, work.py runs them, book.py keeps what became of them, rows.py ranks them, and show.py
prints and draws it. Nothing is imported here: the command line needs space.py alone.
"""
