"""A model behind an OpenAI-compatible endpoint. Start with server.py."""
