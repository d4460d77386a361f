"""Encoders made smaller in place: fewer layers, heads and inner neurons, word embeddings of a lower rank.

Nothing here trains. An encoder's configuration goes on describing the network that it was, and
:func:`leebert.slim.structure.structure_of` says what is left of it. A reduced encoder has new parameters: an optimiser
made before holds the old ones.
"""
