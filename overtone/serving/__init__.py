"""Serving: one base, many adapters, each request its own.

adapter_store  folders of adapters on disk -> versions in the model, leased to requests
auth           tokens, tenants and rates; TLS
engine         waiting rows of any adapters -> batches -> log-probabilities
recognition    a request in plain values; a whole recording -> hypotheses
streaming      a live stream -> interim and final results
riva           Riva's gRPC interface
http           pages, administration, bodies and errors of HTTP
openai         OpenAI's transcription interface
realtime       Riva's realtime interface over WebSockets
app, server    all of them in one process
"""
