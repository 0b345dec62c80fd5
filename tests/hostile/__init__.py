"""Documents that nobody means well with: `make hostile` embeds them all and shows what became of each."""
