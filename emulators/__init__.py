"""Fake upstreams on real sockets, and a real small model. Standard library only."""
