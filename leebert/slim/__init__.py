"""Encoders made smaller in place: fewer layers, heads and inner neurons, word embeddings of a lower rank.

Nothing here trains. An encoder's configuration keeps describing the original network;
:func:`leebert.slim.structure.structure_of` describes the reduced one. A reduced encoder has new parameters, so make its
optimiser afterwards.
"""
