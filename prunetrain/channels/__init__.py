"""Channel spaces: finding them, deciding which channels can go, cutting."""
