"""The wheel and the Debian package hold everything, in its place."""
