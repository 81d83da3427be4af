"""One typed function for each thing that a user wants."""
