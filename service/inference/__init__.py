"""One request while it is answered, whatever it came by.

request.py         its life, from its head to its end. receiving.py: while its body comes; parsing.py: from there
                   into the queue; request.py itself: answered, ended
plan.py            what its head asks for, made once for all that ask alike
server_context.py  what the requests of an API server share
partial_body.py    bodies that come in parts; body_budget.py what they may hold, holdings.py which are evicted
response.py        what goes back
observers.py       called when it ends: metrics, access_log.py; context.py is what they are given
"""
