#!/bin/sh
# Makes the new root $1 a desktop: its user, and the kernel modules of the tests, which are built here because
# a compiler takes minutes in the machine. The folder $2 inside has the lab's own files.
set -eu
root=$1 lab=$2

chroot "$root" useradd --create-home --shell /bin/bash alice
# Debian writes it when somebody answers which display manager it is to be.
ln -sf /usr/lib/systemd/system/lightdm.service "$root/etc/systemd/system/display-manager.service"

[ -e "$root$lab/faulty/Makefile" ] || exit 0
for build in "$root"/lib/modules/*/build; do
    version=${build%/build}
    version=${version##*/}
    chroot "$root" make -C "/lib/modules/$version/build" "M=$lab/faulty" modules
    mkdir -p "$root/lib/modules/$version/extra"
    cp "$root$lab"/faulty/*.ko "$root/lib/modules/$version/extra"
    chroot "$root" depmod "$version"
done
