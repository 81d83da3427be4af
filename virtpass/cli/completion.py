"""Completion of what is being typed in bash, zsh and fish.

click knows what can follow; what shells make of it is ours. bash takes words apart at colons, which PCI
addresses have, and zsh takes the text before the first colon for the whole value. A name of a domain can hold
anything: it arrives on the command line quoted, or not at all.

The shell's script runs ``virtpass`` with a question in its environment, such as
``_VIRTPASS_COMPLETE=zsh_complete``; to ``zsh_source`` the answer is that script.
"""

import os
import shlex
from typing import ClassVar

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, shell_complete

from virtpass.system.errors import one_line
from virtpass.system.host import Host

_BASH = r"""# bash completion for virtpass

_virtpass() {
    local kind value
    COMPREPLY=()
    while IFS=$'\t' read -r kind value; do
        case $kind in
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(env _VIRTPASS_COMPLETE=bash_complete COMP_WORDS="${COMP_LINE:0:COMP_POINT}" \
        COMP_WORDBREAKS="$COMP_WORDBREAKS" "$1" 2>/dev/null </dev/null)
}

complete -o nosort -F _virtpass virtpass
"""

# A file below $fpath is the body of the function that it is named after: it runs at the first use.
_ZSH = r"""#compdef virtpass

_virtpass() {
    local line kind value
    local -a parts plain described
    local typed="${(j: :)words[1,CURRENT-1]} $QIPREFIX$IPREFIX$PREFIX"
    for line in "${(@f)$(env _VIRTPASS_COMPLETE=zsh_complete COMP_WORDS="$typed" \
        "$words[1]" 2>/dev/null </dev/null)}"; do
        parts=("${(@ps:\t:)line}")
        kind=$parts[1] value=$parts[2]
        case $kind in
            file) _files ;;
            dir) _files -/ ;;
            plain)
                if [[ -n $parts[3] ]]; then
                    described+=("${${value//\\/\\\\}//:/\\:}:$parts[3]")
                else
                    plain+=("$value")
                fi
                ;;
        esac
    done
    (( $#described )) && _describe -V virtpass described
    (( $#plain )) && compadd -V virtpass -a plain
}

if [[ $funcstack[1] == _virtpass ]]; then
    _virtpass "$@"
else
    compdef _virtpass virtpass
fi
"""

_FISH = r"""# fish completion for virtpass

function __virtpass_complete
    set -l typed (commandline -cp | string join ' ')
    set -l words (commandline -opc)
    for line in (env _VIRTPASS_COMPLETE=fish_complete COMP_WORDS="$typed" $words[1] 2>/dev/null </dev/null)
        set -l parts (string split -m 1 \t -- $line)
        switch $parts[1]
            case file
                __fish_complete_path (commandline -ct)
            case dir
                __fish_complete_directories (commandline -ct)
            case plain
                printf '%s\n' $parts[2]
        end
    end
end

complete --no-files --keep-order --command virtpass --arguments '(__virtpass_complete)'
"""

# What bash leaves as it is outside quotes.
_BARE = frozenset("_@%+=:,./-")


class _Complete(ShellComplete):
    """What the shells have in common: the line up to the cursor goes in, whole words come out."""

    def source(self) -> str:
        return self.source_template

    def get_completion_args(self) -> tuple[list[str], str]:
        """Take the line apart as a shell does; the last word is the one at the cursor, and may be empty."""
        *words, last = _words(os.environ.get("COMP_WORDS", "") + "x")
        return words[1:], last[:-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Return what the word at the cursor can become, as a whole: also in --option=value."""
        try:
            items = super().get_completions(args, incomplete)
        except Exception:
            # Whatever it is, it shows when the command is run, not while it is typed.
            return []
        option, separator, _ = incomplete.partition("=")
        if separator and option.startswith("-"):
            for item in items:
                if item.type == "plain" and not item.value.startswith(option + separator):
                    item.value = f"{option}={item.value}"
        return [item for item in items if item.value.isprintable()]

    def format_completion(self, item: CompletionItem) -> str:
        """Return a line: kind, value, and help if there is some, with tabs between them."""
        return "\t".join((item.type, item.value, *filter(None, [one_line(item.help or "")])))


class _Bash(_Complete):
    """bash: the part of a word that it replaces, quoted."""

    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = _BASH

    def complete(self) -> str:
        args, incomplete = self.get_completion_args()
        items = self.get_completions(args, incomplete)
        line = os.environ.get("COMP_WORDS", "")
        if quote := _open_quote(line):
            # What follows the mark is replaced, and stays within it.
            before = line[: line.rfind(quote)]
            if not before[-1:].isspace():
                return ""
            values = [_inside_quotes(item) for item in items]
        else:
            # Readline ends a word at each of COMP_WORDBREAKS; of those, ours have only these two.
            breaks = [one for one in ":=" if one in os.environ.get("COMP_WORDBREAKS", "")]
            start = max((incomplete.rfind(one) + 1 for one in breaks), default=0)
            values = [
                _quoted(item.value[start:]) if item.value.startswith(incomplete[:start]) else ""
                for item in items
            ]
        return "\n".join(
            f"{item.type}\t{value}"
            for item, value in zip(items, values, strict=True)
            if value or item.type != "plain"
        )


class _Zsh(_Complete):
    name: ClassVar[str] = "zsh"
    source_template: ClassVar[str] = _ZSH


class _Fish(_Complete):
    name: ClassVar[str] = "fish"
    source_template: ClassVar[str] = _FISH


def _words(line: str) -> list[str]:
    """Split a line as a shell does; quotes that are still open are closed at its end."""
    for end in ("", '"', "'"):
        try:
            return shlex.split(line + end)
        except ValueError:
            continue
    return [line]


def _open_quote(line: str) -> str:
    """Return the quotation mark that is open at the end of a line, nothing where none is."""
    for end in ("", '"', "'"):
        try:
            shlex.split(f"{line}x{end}")
        except ValueError:
            continue
        return end
    return ""


def _inside_quotes(item: CompletionItem) -> str:
    """Return a value if it means the same in quotation marks of either kind, else nothing."""
    return item.value if all(one.isalnum() or one in _BARE or one == " " for one in item.value) else ""


def _quoted(value: str) -> str:
    """Return a value as bash has to read it, with backslashes: readline then recognises what was typed."""
    return "".join(one if one.isalnum() or one in _BARE else f"\\{one}" for one in value)


def answer(command: click.Command, host: Host, question: str) -> int:
    """Answer the script of a shell on standard output.

    Args:
        command: what is completed.
        host: the host that it works on.
        question: the shell's name, then ``_source`` for the script or ``_complete`` for what can follow.

    Returns:
        the exit status: 1 for another question.
    """
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)
    # The name of the variable is for click's own scripts.
    return shell_complete(command, {"obj": host}, "virtpass", "", question)
