"""Callbacks for other trainers; each module needs the library that it is named after, and is imported by its path."""
