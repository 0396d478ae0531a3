"""Reviews leave for other tools, and decisions come back: JSON Lines, Label Studio, Argilla.

Who decides in a tool of their own decides here too: each decision that comes back is claimed and made under the name
that it has there, by the rules of the inbox, so that it is logged, told to callers, and counts as a person's.
"""
