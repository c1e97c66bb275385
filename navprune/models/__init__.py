"""Encoders built from a spec, and the recurrent policy around them."""
