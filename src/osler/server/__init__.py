"""Online diagnosis: a door to the same `diagnose`."""
