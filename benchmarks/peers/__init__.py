"""Other supervisors, and this one, with the same service, in one run."""
