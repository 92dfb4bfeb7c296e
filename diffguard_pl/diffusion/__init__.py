"""Formulas of the method, in torch alone: DDIM, noise schedules, guidance, adaptive early stop."""
