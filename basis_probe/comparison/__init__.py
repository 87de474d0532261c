"""Two networks compared and joined, up to the changes of basis that their architectures allow."""
