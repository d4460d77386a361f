"""What finished cells say: statistics, comparisons, choices, figures and pages."""
