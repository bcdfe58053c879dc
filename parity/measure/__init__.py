"""The measure (relF), the gates, and the rows of a report: each error with what it may be."""
