"""What a difference over seeds says: its estimate, the error that looks at it may spend, and the verdict."""
