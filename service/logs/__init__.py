"""How the server's processes log: records.py on stderr, as lines.py says, bounded by limits.py, through pipes.py."""
