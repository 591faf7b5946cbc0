"""Which interventions answer the requests of a task, for each tenant."""
