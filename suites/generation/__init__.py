"""The generation suite: sequences of every length, split, order and end."""
