"""Stages: each takes an iterator of event batches and returns one.

run.py composes them, in one visible list.
"""
