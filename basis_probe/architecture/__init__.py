"""The architecture's answer: facts, the group that follows from them, and its proof."""
