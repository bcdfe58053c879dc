"""Campaigns that try to break the product: what was tried, what held; see README.md here."""
