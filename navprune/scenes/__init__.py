"""What a world is on disk, in Habitat's own layout."""
