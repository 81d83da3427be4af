"""What stands between this host and a working passthrough: one check for each thing, with its verdict."""
