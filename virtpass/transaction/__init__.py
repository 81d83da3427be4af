"""Changes of files and the commands that follow: planned, applied as a whole, proven, undone exactly."""
