"""What the desktop machine has beside the standard one: a user with a session on the card, and modules.

Whoever tests starts the session: lightdm logs `USER` in by itself with openbox under X, and so does a console
with `AUTOLOGIN`, where weston takes the place of the shell.
"""

from __future__ import annotations

from pathlib import Path

USER = "alice"
# What the sessions fill the monitor with; nothing else does.
ORANGE = (192, 64, 0)
GREEN = (0, 96, 48)

PACKAGES = (
    "gcc",
    "libpam-systemd",
    "lightdm",
    "lightdm-gtk-greeter",
    "linux-headers-amd64",
    "make",
    "openbox",
    "weston",
    "x11-xserver-utils",
    "xserver-xorg-core",
    "xserver-xorg-input-libinput",
)
# What an option of the user has in /etc/systemd/system/getty@tty1.service.d, for a session without lightdm.
AUTOLOGIN = (
    f"[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin {USER} --noclear --noreset %I linux\n"
)


def _hexadecimal(colour: tuple[int, int, int]) -> str:
    return "".join(f"{part:02x}" for part in colour)


FILES = {
    "etc/lightdm/lightdm.conf.d/50-lab.conf": f"[Seat:*]\nautologin-user={USER}\nautologin-session=openbox\n",
    "etc/skel/.config/openbox/autostart": f"xsetroot -solid '#{_hexadecimal(ORANGE)}'\n",
    "etc/skel/.config/weston.ini": (
        # Without Mesa's renderer, which takes seconds for each picture here.
        "[core]\nrenderer=pixman\nidle-time=0\nrequire-input=false\n"
        f"[shell]\nbackground-color=0xff{_hexadecimal(GREEN)}\nbackground-type=tile\npanel-position=none\n"
        "animation=none\nstartup-animation=none\n"
    ),
    "etc/skel/.bash_profile": 'case $(tty) in /dev/tty1) exec weston --log="$HOME/weston.log" ;; esac\n',
}
# lightdm is what it is on every Debian, the display manager; but a machine begins without it.
LINKS = {"etc/systemd/system/default.target": "/usr/lib/systemd/system/multi-user.target"}

MODULES = Path(__file__).parent / "faulty"


def module_sources() -> dict[str, bytes]:
    """Return the files that kernel modules of the tests are built from, by their name in the lab's folder."""
    files = sorted(
        path for path in MODULES.glob("*") if path.suffix in (".c", ".h") or path.name == "Makefile"
    )
    return {f"{MODULES.name}/{path.name}": path.read_bytes() for path in files}
