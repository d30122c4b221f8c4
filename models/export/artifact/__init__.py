"""What becomes of an export on the disk: manifest.json and reference.npz, in a version that appears in one step."""
