"""Moving and seeing in a scene, for many agents at once."""
