"""Plug-ins: every file here is one of the methods, known by its name."""
