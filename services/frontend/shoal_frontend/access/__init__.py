"""Who may do what: credentials, roles, limits per tenant, and the public API as one principal sees it."""
