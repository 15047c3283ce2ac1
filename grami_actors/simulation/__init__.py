"""The unmodified program in virtual time, on a schedule that is drawn from a seed. Floor 14."""
