"""The core's side of shared memory: checking, handing out and closing descriptors, and the generation
table.
"""
