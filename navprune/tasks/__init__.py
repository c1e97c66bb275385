"""PointNav: actions, sensors, reward, success, SPL; N environments in lockstep."""

STOP, FORWARD, LEFT, RIGHT = range(4)
"""Habitat's actions."""

GOAL = "pointgoal_with_gps_compass"
"""Name of the goal sensor: distance and angle, see `measures.goal_vectors`."""
