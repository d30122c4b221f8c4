"""What an export sets in its process while it works, and puts back: torch's modes and switches, output, memory,
Ctrl-C."""
