"""What several tests share: a mounted union, trees to fill and compare, other users, raw calls."""
