"""What the head of a request says: cache.py of an ordinary one, reader.py reads those, rules.py what none may say."""
