"""Subcommands of `foldserve` beside `serve`: each looks at artifacts, or talks to a running server as a client does."""
