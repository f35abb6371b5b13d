"""JSON Web Tokens of a user's own login: who signs them, what their claims allow, and where the public keys are."""
