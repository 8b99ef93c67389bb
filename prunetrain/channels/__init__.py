"""Channel spaces, which channels can go, and cutting them."""
