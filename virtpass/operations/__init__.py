"""One typed function for each thing that a user wants: what the commands call, and other programs can.

docs/api.md in the sources describes the modules that are named here; all others are parts of these. This
package imports none of them: nobody waits for what is not used.
"""

__all__ = [
    "devices",
    "doctor",
    "domains",
    "functions",
    "hand_overs",
    "hooks",
    "host_preparation",
    "locking",
    "mediated_devices",
    "node_devices",
    "overview",
    "recovery",
    "rehearsal",
    "setup",
    "snapshot",
    "uninstall",
]
