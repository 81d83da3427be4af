"""The lab: a machine with an emulated IOMMU in which real passthrough is tried. See docs/lab.md."""
