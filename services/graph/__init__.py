"""Graph: nodes and relationships, patterns, paths and algorithms on them."""
