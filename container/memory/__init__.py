"""Who lies where, and moving them."""
