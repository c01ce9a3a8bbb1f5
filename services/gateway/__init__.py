"""gateway-primary: one address in front of every service; ``/<service>/…`` goes to an instance of it.

Does not terminate TLS, cache, authenticate or rewrite bodies.
"""
