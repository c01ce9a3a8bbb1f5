"""cdnctl demo: a fleet of its own for two minutes, a story that is played in it, and what came of that."""
