"""`picospec connect` and `launch` make clients use this edge."""
