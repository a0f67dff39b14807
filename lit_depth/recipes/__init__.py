"""Callbacks and data of training recipes."""
