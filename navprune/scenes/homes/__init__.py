"""Procedural homes and their data set."""
