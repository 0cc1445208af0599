"""The only rooms that import verl. Each plugs in through one of verl's own registries."""
