"""CURVE keys: their files and roles, the folder that holds them, and who admits clients by them."""
