"""A run of commands as one HTML page, with the pictures in it."""

from __future__ import annotations

import base64
import html
from pathlib import Path

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>virtpass: a card goes to a virtual machine and comes back</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
pre { background: #111; color: #ddd; padding: 1rem; overflow-x: auto; line-height: 1.35; font-size: 0.8rem }
pre b { color: #8f8; font-weight: normal }
p.ok::before { content: "\\2713\\00a0"; color: #080 }
p.not::before { content: "\\2717\\00a0"; color: #b00 }
p.not { color: #b00 }
p.ok, p.not { margin: 0 }
figure { margin: 1rem 0 }
img { max-width: 100%; border: 12px solid #333; border-radius: 6px }
figcaption { color: #555 }
</style>
<h1>A card goes to a virtual machine and comes back</h1>
<p>The commands and their output are those of one run, in a virtual machine that stands for the host.</p>
"""


class Transcript:
    """Collects what a run did, in order."""

    def __init__(self) -> None:
        self._parts = [HEAD]

    def title(self, text: str) -> None:
        """Add a heading."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>\n")

    def command(self, command: str, output: str, status: int) -> None:
        """Add a command with its output, and its status unless that is 0."""
        text = f"<b>root@lab:~# {html.escape(command)}</b>\n{html.escape(output)}"
        self._parts.append(f"<pre>{text}{f'{chr(10)}[status {status}]' if status else ''}</pre>\n")

    def check(self, holds: bool, what: str) -> None:
        """Add something that was checked."""
        self._parts.append(f'<p class="{"ok" if holds else "not"}">{html.escape(what)}</p>\n')

    def picture(self, path: Path, caption: str) -> None:
        """Add a picture; the page holds a copy of it."""
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        self._parts.append(f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>\n")

    def page(self) -> str:
        """Return the page."""
        return "".join(self._parts)
