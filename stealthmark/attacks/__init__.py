"""Plug-ins: every file here is one of the attacks, known by its name."""
