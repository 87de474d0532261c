"""Can a person read the directions of a layer? Concepts, examples, causes: axes against the null.

Whatever is computed of the axes is computed of the null's directions by the same code, selection
included: the best of a hundred concepts for a neuron is compared with the best of a hundred
concepts for a random direction.
"""
