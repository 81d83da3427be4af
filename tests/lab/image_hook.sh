#!/bin/sh
# Writes the new root $1 as a file system of size $3 into the folder $2, with the kernel and the initial RAM file
# system for the host; the folder $4 inside has the lab's own files. Run by mmdebstrap inside its name space, because only there the owners of the files
# are right when a normal user builds.
set -eu
root=$1 out=$2 size=$3 lab=$1$4
PATH=$PATH:/usr/sbin:/sbin

chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/*
cp "$root"/boot/vmlinuz-* "$out/vmlinuz"
mv "$lab/host.initramfs" "$out/initrd"
cp "$out/vmlinuz" "$lab/guest.vmlinuz"
# A hundred programs that are not here have profiles, and loading them takes seconds at each boot.
find "$root/etc/apparmor.d" -maxdepth 1 -type f ! -name '*libvirt*' -delete
# mmdebstrap has /proc, /sys and /dev mounted in the root; a bind mount shows it without them.
mkdir "$out/root"
# shellcheck disable=SC2016 # the inner shell expands them
unshare --mount sh -euc '
    mount --bind "$1" "$2/root"
    mke2fs -q -t ext4 -L root -E root_owner=0:0 -d "$2/root" "$2/root.ext4" "$3"
' sh "$root" "$out" "$size"
rmdir "$out/root"
chmod a+r "$out"/*
