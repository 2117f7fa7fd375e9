"""One device and one pair: are outputs exact, how far is each stage from its floor, and what do the engines reach
beside what users would run instead."""
