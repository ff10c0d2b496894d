"""How weights and what flows between layers are stored: one module for each scheme."""
