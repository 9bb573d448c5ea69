"""One module an upstream.

A module here that has a `build` function is a provider: nothing else lists it.
"""
