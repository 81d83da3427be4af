#!/bin/sh
# Mounts the root file system of the host under test and gives it the machine. The distribution's own initial
# RAM file system would do the same, and take five seconds more.
/bin/busybox mkdir -p /proc /sys /dev /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
modprobe virtio_blk
# Loaded here because modprobe of busybox does not know soft dependencies.
modprobe crc32c_generic
modprobe ext4
until [ -b /dev/vda ]; do
    sleep 0.1
done
mount -t ext4 -o rw,noatime /dev/vda /new || sh
mount -o move /dev /new/dev
umount /sys /proc
exec switch_root /new /sbin/init
