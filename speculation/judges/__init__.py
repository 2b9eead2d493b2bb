"""The ways to judge draft tokens. Each has a half for each end; no other room knows them."""
