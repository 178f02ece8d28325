"""Short absl programs; no logic."""
