"""The network as its owner gave it: copied into eval mode and float32, run as it was before any run, refused with its
own lines."""
