"""Serving on a Ray cluster: replicas of the engine behind Ray Serve, and fronts with the server's own ports.

The extra `overtone[ray]`; nothing else imports this package.
"""
