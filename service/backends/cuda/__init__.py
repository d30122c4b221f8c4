"""What serving on CUDA needs whatever runs the model: libraries, options, errors, graphs, a trial."""
