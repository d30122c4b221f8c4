"""What the server says about itself: to programs (info.py) and to people (docs.py)."""
