"""The formats of scenes, navmeshes and episodes on disk."""
