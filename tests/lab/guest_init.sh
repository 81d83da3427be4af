#!/bin/sh
# The first and only process of the nested guest. It loads the drivers of the PCI devices it sees, says on
# the serial console what it sees, paints the monitor of its card blue, and powers off at the power button.
/bin/busybox mkdir -p /proc /sys /dev /sbin
/bin/busybox --install -s /bin
export PATH=/bin
# The kernel itself asks for codec drivers through this path.
ln -s /bin/busybox /sbin/modprobe
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null

load_drivers() {
    cat /sys/bus/pci/devices/*/modalias | sort -u | while read -r alias; do
        modprobe -q "$alias"
    done
}

list_devices() {
    for device in /sys/bus/pci/devices/*; do
        read -r vendor <"$device/vendor"
        read -r id <"$device/device"
        read -r class <"$device/class"
        driver=-
        [ -e "$device/driver" ] && driver=$(basename "$(readlink "$device/driver")")
        echo "PCI ${device##*/} ${vendor#0x}:${id#0x} ${class#0x} $driver"
    done
}

watch_power_button() {
    modprobe -q button
    modprobe -q evdev
    # shellcheck disable=SC2013 # the names have no blanks, and a loop that reads would run in a subshell
    for event in $(sed -n '/^N: Name="Power Button"/,/^$/s/^H:.*\(event[0-9]*\).*/\1/p' /proc/bus/input/devices); do
        { dd if="/dev/input/$event" of=/dev/null bs=24 count=1 2>/dev/null && echo "GUEST POWEROFF" && poweroff -f; } &
    done
}

paint() {
    # One letter of the message becomes a block of four columns and two rows, white on blue.
    escape=$(printf '\033')
    {
        printf '\033[?25l\033[0;97;44m\033[2J\033[12;1H'
        sed "s/^/..../; s/#/${escape}[107m    ${escape}[44m/g; s/\./    /g; p" <<'LETTERS'
.###..#...#.#####..####.#####
#.....#...#.#.....#.......#..
#..##.#...#.####...###....#..
#...#.#...#.#.........#...#..
.###...###..#####.####....#..
LETTERS
        printf '\n\n\n                virtpass: this picture is drawn by the guest\n'
    } >/dev/tty1
}

load_drivers
watch_power_button
painted=no
seen=
while :; do
    if [ ! -e /sys/class/graphics/fb0 ]; then
        painted=no
    elif [ $painted = no ]; then
        paint
        painted=yes
    fi
    devices=$(list_devices)
    if [ "$devices" != "$seen" ]; then
        read -r uptime rest </proc/uptime
        printf 'GUEST SEES\n%s\nGUEST READY after %s s\n' "$devices" "$uptime"
        seen=$devices
    fi
    sleep 1
    load_drivers
done
