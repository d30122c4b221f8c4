"""How the server's processes log: records.py on stderr, bounded by limits.py, through pipes that never block."""
