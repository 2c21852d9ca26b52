"""Serving: one base, many adapters, each request its own.

shelf      adapter folders on disk -> versions in the model, leased to requests
engine     waiting rows of any adapters -> batches -> log-probabilities
offline    a whole recording -> hypotheses
streaming  a live stream -> interim and final results
sniff      bytes of any container -> samples at the model's rate
errors     what a request may be told instead of an answer
"""
