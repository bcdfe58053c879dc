"""What knows our own models: pairs by name, weight files, and the commands for them."""
