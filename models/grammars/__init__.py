<<<<<<< HEAD
"""Grammars that an answer must keep to, and the state of an answer in its grammar."""
=======
"""Grammars that the text of an answer must keep to, and where answers stand in them."""
>>>>>>> grammar
