"""Networks from and to other programs' formats."""
