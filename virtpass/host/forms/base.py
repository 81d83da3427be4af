"""What every form speaks."""

from typing import ClassVar, Protocol


class Form(Protocol):
    """One way in which virtpass has a part in a file."""

    kind: ClassVar[str]

    def for_base(self, base: bytes | None) -> "Form":
        """Return the form with only that in it which ``base`` does not have already."""

    def add(self, base: bytes | None) -> bytes:
        """Return the content with our part in it; ``base`` is None for a file that does not exist.

        Raises:
            RefusedError: the file is not understood.
        """

    def remove(self, content: bytes) -> bytes | None:
        """Return the content without our part; None when nothing of the file is left.

        Raises:
            RefusedError: others have edited the file, and nobody can tell any more how to take our part out.
        """
