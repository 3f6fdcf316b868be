"""The Vast.ai marketplace behind the port Cloud: the account's key, a small HTTP client, the endpoints."""
