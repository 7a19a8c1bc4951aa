"""The report: one HTML page that explains a run, drawn from its files."""
