"""One module a client dialect: requests decoded once at the edge, events encoded into the
dialect's bytes.
"""
