"""What Linux allows and offers this process: cgroups, signals, the death of a parent. Knows nothing of serving."""
