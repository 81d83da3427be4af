"""The libvirt layer: hostdev elements, guest addresses and our metadata in the domain XML."""
