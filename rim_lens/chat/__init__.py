"""A request as a model reads it: chat templates, think tags, and the segment of every token."""
