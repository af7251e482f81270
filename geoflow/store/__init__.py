"""The national store: one Zarr v3 hierarchy on one grid, and the receipts of what was written into it."""
