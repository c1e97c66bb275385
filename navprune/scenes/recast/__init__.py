"""Navmeshes from triangles, as Recast builds them in habitat-sim."""
