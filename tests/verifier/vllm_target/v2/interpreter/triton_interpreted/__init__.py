"""Lets Model Runner V2 run without a GPU, where TRITON_INTERPRET=1 has kernels interpreted: a
backend of Triton that compiles nothing, and a plugin of vLLM that makes it quick enough.

For the tests beside it, on PYTHONPATH. Where it is installed, vLLM's runner V1 breaks.
"""
