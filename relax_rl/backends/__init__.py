"""How environments are made and stepped."""
