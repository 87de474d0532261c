"""What a probe costs, in ratios that are measured side by side."""
