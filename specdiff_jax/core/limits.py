"""The largest and smallest values that an option may have."""

# Counters are int32, positions are told apart by float32, and programs are
# compiled for a number of slots that the cache has to hold.
MOST_TOKENS = 1 << 24  # in a sequence
MOST_DEEP, MOST_DRAFTED = 512, 1024  # tokens of a window, and of a tree
MOST_NGRAM = 64  # tokens of a match: the comparison of each is compiled
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-20, 1e20  # logits over it are finite
