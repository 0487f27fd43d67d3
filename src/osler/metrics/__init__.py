"""Pure functions of arrays: what is measured, with its interval."""
