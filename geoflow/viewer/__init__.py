"""The map in a browser: a small server on loopback, and a page that reads the store's chunks by itself."""
