"""`-m safety:guard`: any agent behind a judge of what the user says and of what the agent would reply."""
