"""MeerkatBench: metrics, baselines, score tables and the report."""
