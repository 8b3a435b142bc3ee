"""Training that goes on as the smaller network's would have."""
