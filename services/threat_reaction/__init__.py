"""Threat reaction: sightings in, decisions by playbooks, bans that a gateway and CrowdSec's bouncers carry out."""
