"""S2, T5, P3: the families of action distributions, one file each, and which of SB3's classes is which."""
