"""The error measure (relF) and the gates."""
