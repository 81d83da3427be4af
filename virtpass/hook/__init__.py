"""The qemu hook: what libvirt runs at start and stop, and how it is installed."""
