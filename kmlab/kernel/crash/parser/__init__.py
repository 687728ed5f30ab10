"""From a log to its findings: how it was pasted, where a report begins and ends, what its lines say."""
