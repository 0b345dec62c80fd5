"""The demo: a lab, a cluster on it, real documents in it, and three questions to them."""
