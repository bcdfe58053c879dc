"""What people get wrong in these architectures, by the file of the right pair."""
