"""The domain table: what adapters gain on a domain, and what they cost on general speech."""
