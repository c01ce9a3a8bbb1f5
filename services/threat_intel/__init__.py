"""Threat intelligence: feeds in, verdicts on addresses, names, URLs and hashes out."""
