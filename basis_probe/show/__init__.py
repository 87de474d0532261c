"""Results as pages, tables, figures and lines on a terminal; nothing here computes a finding."""
