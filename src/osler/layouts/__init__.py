"""Folders and tables that hold a cohort: one layout a file.

Every file holds ``matches(path) -> bool`` and ``read(path) -> Listing``.
"""
