"""virtpass: gives PCI devices to libvirt domains and takes them back."""

__version__ = "0.1.0"
