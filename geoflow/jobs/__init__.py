"""Jobs: from a YAML file to tasks on a Dask cluster, receipts, and a report."""
