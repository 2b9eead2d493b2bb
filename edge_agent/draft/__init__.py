"""The draft model of an edge: its interface, llama.cpp, and models of other vocabularies."""
