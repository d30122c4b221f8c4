"""Which precision the files compute in: what stays in float32, and where the casts are."""
