"""The claims of an audit, each with a smallest effect of interest, and the verdict on each."""
