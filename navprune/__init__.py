"""PointNav agents with slim visual encoders: train, prune, and measure what it costs and saves."""

from navprune.registration import register

__version__ = "0.1.0"

register()
