"""The data's answer at one site: which null, every score against it, and what stands beside."""
