"""What an AppArmor profile says of a file that its program wants to execute, from the profile's text.

The grammar is that of apparmor.d(5), as far as it concerns files: a rule that denies beats all that allow,
and what no rule allows is refused. Rules in profiles inside of the profile are not its own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from virtpass.system.host import Host

DIRECTORY = "/etc/apparmor.d"
# Of a profile with all that it includes.
_MAX_FILES = 200

_RULE = re.compile(
    r"""(?:priority=-?\d+\s+)?(?:audit\s+)?(?:(?P<kind>allow|deny)\s+)?(?:owner\s+)?(?:file\s+)?
    (?:(?P<path>"[^"]+"|[/@]\S*)\s+(?P<access>[a-zA-Z]+)|(?P<first>[rwalkmixupPUCc]+)\s+(?P<second>"[^"]+"|[/@]\S*))
    \s*(?:->\s*\S+\s*)?,""",
    re.VERBOSE,
)
_EVERYTHING = re.compile(r"(?:audit\s+)?(?:(?P<kind>allow|deny)\s+)?file\s*,")
_INCLUDE = re.compile(r"#?include\s+(?P<optional>if\s+exists\s+)?[<\"]?(?P<path>[^>\"\s]+)[>\"]?")
_WORD = re.compile(
    r"\\.|@\{[^}]*\}|\*\*|[*?{},]|\[[^\]]*\]|[^\\@*?{},\[]+|.",
    re.DOTALL,
)


class Answer(Enum):
    """What a profile says."""

    ALLOWED = "allowed"
    DENIED = "denied"
    NO_RULE = "no rule"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule about executing files.

    Attributes:
        is_denial: whether it denies.
        pattern: the paths that it is about, as written.
        text: the whole rule.
        source: the file that it is in.
    """

    is_denial: bool
    pattern: str
    text: str
    source: str

    def is_about(self, path: str) -> bool:
        """Tell whether a path is one of its paths; with a variable in the pattern it may be."""
        expression = _expression(self.pattern)
        return expression is not None and expression.fullmatch(path) is not None


@dataclass(frozen=True, slots=True)
class Profile:
    """What a profile says of executing files.

    Attributes:
        path: its file.
        rules: its own, and those of what it includes.
        has_local: whether it includes the file in which administrators put rules of their own.
        is_whole: whether all that it includes could be read.
    """

    path: str
    rules: tuple[Rule, ...]
    has_local: bool
    is_whole: bool

    @property
    def local(self) -> str:
        """The file for rules of the administrator."""
        return f"{DIRECTORY}/local/{self.path.rpartition('/')[2]}"

    def execution(self, path: str) -> tuple[Answer, Rule | None]:
        """Tell whether the program may execute a file, and by which rule."""
        about = [rule for rule in self.rules if rule.is_about(path)]
        # What a variable stands for is not known here: no denial is told from it.
        denials = [rule for rule in about if rule.is_denial and "@{" not in rule.pattern]
        if denials:
            return Answer.DENIED, denials[0]
        if allowing := [rule for rule in about if not rule.is_denial]:
            return Answer.ALLOWED, allowing[0]
        return (Answer.NO_RULE if self.is_whole else Answer.UNKNOWN), None


def read_profile(host: Host, path: str) -> Profile | None:
    """Read a profile with all that it includes; None when it is not there or cannot be read."""
    if host.read(path) is None:
        return None
    reader = _Reader(host)
    rules = tuple(reader.rules(path, is_profile=True))
    local = f"{DIRECTORY}/local/{path.rpartition('/')[2]}"
    return Profile(path, rules, local in reader.named, reader.is_whole)


class _Reader:
    """Follows the includes of a profile.

    Attributes:
        named: the files and directories that are included, whether they are there or not.
        is_whole: whether all could be read.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seen: set[str] = set()
        self.named: set[str] = set()
        self.is_whole = True

    def rules(self, path: str, *, is_profile: bool = False) -> Iterator[Rule]:
        """Yield the rules of a file that concern the profile itself."""
        if path in self._seen:
            return
        self._seen.add(path)
        text = self._host.read(path) if len(self._seen) <= _MAX_FILES else None
        if text is None:
            self.is_whole = False
            return
        depth, own = 0, 1 if is_profile else 0
        for line in map(str.strip, text.splitlines()):
            if depth in (0, own) and (included := _INCLUDE.match(line)):
                yield from self._included(included["path"], is_optional=bool(included["optional"]))
                continue
            statement = _without_comment(line)
            if statement.endswith("{"):
                depth += 1
            elif statement.startswith("}"):
                depth -= 1
            elif depth == own and (rule := _rule(statement, path)):
                yield rule

    def _included(self, name: str, *, is_optional: bool) -> Iterator[Rule]:
        path = name if name.startswith("/") else f"{DIRECTORY}/{name}"
        self.named.add(path)
        names = self._host.names(path)
        if names:
            for one in names:
                yield from self.rules(f"{path}/{one}")
        elif self._host.exists(path) or not is_optional:
            yield from self.rules(path) if self._host.read(path) is not None else self._unread(path)

    def _unread(self, path: str) -> Iterator[Rule]:
        """Note a file that cannot be read; an empty directory has no rules."""
        self.is_whole = self.is_whole and self._host.exists(f"{path}/.")
        return iter(())


def _without_comment(line: str) -> str:
    """Return a line up to its comment, which begins with a # that is no part of a path."""
    return re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()


def _rule(statement: str, source: str) -> Rule | None:
    """Parse a rule; None for one that is not about executing files."""
    if everything := _EVERYTHING.fullmatch(statement):
        return Rule(everything["kind"] == "deny", "/**", statement, source)
    found = _RULE.fullmatch(statement)
    if found is None:
        return None
    pattern, access = found["path"] or found["second"], found["access"] or found["first"]
    if "x" not in access.lower():
        return None
    return Rule(found["kind"] == "deny", pattern.strip('"'), statement, source)


def _expression(pattern: str) -> re.Pattern[str] | None:
    """Translate a pattern of AppArmor; None for one that is none."""
    parts, depth = [], 0
    for word in _WORD.findall(pattern):
        if word == "**" or word.startswith("@{"):
            parts.append(".*")
        elif word == "*":
            parts.append("[^/]*")
        elif word == "?":
            parts.append("[^/]")
        elif word == "{":
            depth += 1
            parts.append("(?:")
        elif word == "}" and depth:
            depth -= 1
            parts.append(")")
        elif word == "," and depth:
            parts.append("|")
        elif word.startswith("[") and len(word) > 1:
            inner = word[1:-1].replace("\\", "\\\\").replace("[", "\\[")
            parts.append(f"[{inner}]")
        else:
            parts.append(re.escape(word[1:] if word.startswith("\\") and len(word) > 1 else word))
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error:
        return None
