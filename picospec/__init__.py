"""PicoSpec: a large cloud model answers faster, without changing one token of what it says.

The rooms of this package are folders at the top of the repository; here are links to them, so
that they are imported under one name, beside whatever else is installed.
"""
