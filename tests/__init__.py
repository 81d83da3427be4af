"""The tests of virtpass."""
