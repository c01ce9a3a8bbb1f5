"""The services, one package per process; they never import each other."""
