"""The platform's side, for rehearsals: an endpoint stand-in, the demo, payloads. Imports nothing of container."""
