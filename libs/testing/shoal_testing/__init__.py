"""Oracle, virtual clock, fakes and generators for tests. Nothing else imports this package."""
