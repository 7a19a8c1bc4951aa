"""The network: encoders by name, SimCLR with its heads, and embedding of images."""
