"""The HTTP edge: thin blueprints that decode, call and encode.

Flask lives here and nowhere else.
"""
