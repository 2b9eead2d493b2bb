"""The ways to judge draft tokens. Each has a half for either end; no other room knows them."""
