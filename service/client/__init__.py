"""Asks a running server, from Python: clients.py over HTTP (httpx), calls.py what goes and comes."""
