"""`privserve check`: what serving a model would take, and how exact its answers would be."""
