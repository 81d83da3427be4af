"""The one seam to the machine: files under a root, processes, locks, libvirt, udev."""
