"""A fleet of small services under random faults, and what must hold of the history that is recorded of it."""
