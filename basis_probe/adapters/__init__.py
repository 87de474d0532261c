"""Facts about models: what they compute, where, and how to catch it. Nothing that follows from them."""
