"""What the commands do, as functions; one file a command."""
