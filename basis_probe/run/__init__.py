"""One pass over the data: what was asked for, the watched model, the loop, the report."""
