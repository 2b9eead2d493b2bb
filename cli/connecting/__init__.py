"""`picospec connect` and `launch`: they make clients ask this edge."""
