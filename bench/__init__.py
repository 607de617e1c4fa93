"""How fast the main path is: a fake engine, a load, and what stands between them."""
