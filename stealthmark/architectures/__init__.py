"""Plug-ins: every file here is one of the architectures, known by its name."""
