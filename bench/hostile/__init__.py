"""How honest clients fare while somebody attacks; ``python -m bench.hostile`` runs it."""
