"""`make bench`: this engine beside what people would use instead, on the same chunks and the same cores."""
