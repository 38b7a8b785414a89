"""Plug-ins: every file here is one of the scanners, known by its name."""
