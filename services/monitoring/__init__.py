"""Monitoring: scrapes the fleet, keeps the samples, answers questions about them, and tells when they are not well."""
