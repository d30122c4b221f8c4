"""What the server says about itself.

info.py        to programs: /info
openapi.py     to programs: /openapi.json, from the routes and the models that are loaded
operations.py  what that says of the calls that no protocol has
security.py    what it says of keys, where the server asks for them
site.py        to people: the page at /docs, and what it is made of (site/)
"""
