"""A finished run as a repository on the hub. Start with publication.py; nothing here needs torch."""
