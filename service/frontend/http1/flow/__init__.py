"""When bytes are read (control.py, throttle.py), what clients do not take (unread.py), who has gone (resets.py)."""
