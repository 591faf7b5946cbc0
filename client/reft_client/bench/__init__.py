"""`reft bench`: a load tester for OpenAI-compatible servers that also checks the answers."""
