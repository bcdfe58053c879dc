"""The check: the public function and its stages."""
