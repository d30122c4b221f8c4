"""When bytes are read (control.py, throttle.py), what clients do not read (send_buffers.py), resets (resets.py)."""
