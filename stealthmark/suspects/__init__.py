"""Suspects: whatever can be queried, as a predictor. `connect` opens one; each kind of suspect is a module of its own."""
