#!/bin/sh
# Writes the new root $1 into the folder $2: as disk of a machine of kind $4, with the kernel and the initial RAM
# file system that boot it directly. The folder $3 inside has the lab's own files; $5 and $6 are the UUID of the
# root file system and the id of the EFI system partition. Run by mmdebstrap inside its name space, because only
# there the owners of the files are right when a normal user builds.
set -eu
root=$1 out=$2 lab=$1$3 kind=$4 root_uuid=$5 esp_id=$6
disk=$out/disk.raw
PATH=$PATH:/usr/sbin:/sbin

chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/*
cp "$root"/boot/vmlinuz-* "$out/vmlinuz"
if [ "$kind" = trixie ]; then
    mv "$lab/host.initramfs" "$out/initrd"
    cp "$out/vmlinuz" "$lab/guest.vmlinuz"
    # A hundred programs that are not here have profiles, and loading them takes seconds at each boot.
    find "$root/etc/apparmor.d" -maxdepth 1 -type f ! -name '*libvirt*' -delete
else
    cp "$root"/boot/initrd.img-* "$out/initrd"
fi

# Sizes are in MiB. Behind the last partition lies the second copy of the partition table.
case $kind in
trixie) size=6144 before=0 ;;
grub-bios) size=4096 before=2 first='size=1MiB, type=21686148-6449-6E6F-744E-656564454649' ;;
*) size=4096 before=513 first='size=512MiB, type=uefi' ;;
esac
if [ $before -gt 0 ]; then
    truncate -s $((before + size + 1))M "$disk"
    printf 'label: gpt\nstart=1MiB, %s\nstart=%sMiB, size=%sMiB, type=linux\n' "$first" $before $size |
        sfdisk --quiet "$disk"
fi
if [ $before -gt 2 ]; then
    # The size is in KiB here, the place in sectors.
    mkfs.vfat -F 32 -n ESP -i "$esp_id" --offset=2048 "$disk" $((512 * 1024)) >/dev/null
fi
# mmdebstrap has /proc, /sys and /dev mounted in the root; a bind mount shows it without them.
mkdir "$out/root"
# shellcheck disable=SC2016 # the inner shell expands them
unshare --mount sh -euc '
    mount --bind "$1" "$2/root"
    mke2fs -q -F -t ext4 -L root -U "$3" -E "root_owner=0:0,offset=$4" -d "$2/root" "$2/disk.raw" "$5"
' sh "$root" "$out" "$root_uuid" $((before * 1024 * 1024)) ${size}M
rmdir "$out/root"
chmod a+r "$out"/*
