"""Analysis of finished runs: statistics, comparisons, choices, figures and pages."""
