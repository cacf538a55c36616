"""Rewards: how good each next token, or a whole sample, would be."""
