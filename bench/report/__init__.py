"""Reports the results of a run as tables, plots and Markdown."""
