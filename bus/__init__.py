"""The bus: message vocabulary, codec, endpoints and the only ZeroMQ imports of the project.

Floor 1: imports nothing from the floors above. What a module of another floor
may use is what the modules here name without a leading underscore.
"""
