"""One request while it is answered, whatever it came by: its context, its answer, its line in the access log."""
