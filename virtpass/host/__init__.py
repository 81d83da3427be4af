"""Host preparation: kernel arguments, modprobe and initramfs, planned from what the host says of itself."""
