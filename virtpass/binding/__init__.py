"""The engine that moves devices between drivers, with its journal."""
