"""PointNav: actions, sensors, reward, success, SPL; N environments in lockstep."""
