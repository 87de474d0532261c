"""Numbers of activations, and what they are compared with. Nothing here knows of models."""
