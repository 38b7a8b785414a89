"""Plug-ins: every file here is one of the datasets, known by its name."""
