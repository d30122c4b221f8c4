"""What clients send and are answered: one file each."""
