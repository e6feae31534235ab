"""Whether modules and methods are still the objects that they were: asked by whoever computes the same in another way."""
