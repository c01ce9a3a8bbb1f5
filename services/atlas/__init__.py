"""ATLAS, the foundation daemon: hears every service, shows the fleet, carries commands."""
