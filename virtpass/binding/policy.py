"""What a domain's metadata element may say: written by `virtpass.domain`, obeyed by the hook.

Imported by the hook: no imports.
"""

NAMESPACE = "urn:virtpass:passthrough:1"

# Values that each key of the policy may have; the first is the default. ``display=refuse``: a card that
# programs of the host use is not taken from them.
KNOWN_POLICY = {"display": ("refuse",)}
