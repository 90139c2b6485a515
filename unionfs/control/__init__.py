"""The live mount as seen from outside."""
