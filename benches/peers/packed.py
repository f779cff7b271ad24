"""The packed segments of `moerl bench` that a padded batch holds without padding: all of 8k."""

LENGTH = 8192


def shapes(full):
    """Names, with rows and columns."""
    for tokens in (1 << 20, 1 << 24) if full else (1 << 15,):
        yield f"N={tokens} of 8k", (tokens // LENGTH, LENGTH)
