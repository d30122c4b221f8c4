"""When bytes are read (control.py, throttle.py), what clients do not take (send_buffers.py), who left (resets.py)."""
