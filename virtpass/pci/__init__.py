"""PCI addresses, devices, IOMMU groups and isolation: values, and reading them from sysfs."""
